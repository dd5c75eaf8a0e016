"""Token pruning: tokens that matter little are dropped, from a prompt or from the cache, or merged.

One file a pass; how `@step` is written anew over fewer tokens is in `narrowing`, what a token is
worth in `scorers`, how `@forward` is written over merged ones in `merging`, and over some of a
picture's in `visual`.
"""
