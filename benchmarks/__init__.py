"""Scripts that measure elidir, and the peers that it is set beside.

`python -m benchmarks.bench` compares; `size_and_startup` and `decode_scaling` show the figures of
elidir alone. Nothing here is installed with elidir, and nothing in elidir imports it.
"""
