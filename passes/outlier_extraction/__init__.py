"""Outlier extraction: linear maps in int8, and the channels that would spoil them computed apart.

`extract-outliers` is the pass; which channels it takes, from which layers, is in `allotment`.
"""
