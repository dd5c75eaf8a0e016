"""Where elidir keeps files between runs: one folder, named here and nowhere else.

Targets that were measured, compiled programs and native kernels each have a folder in it. Nothing
here reads or writes.
"""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $ELIDIR_CACHE, else `elidir` in $XDG_CACHE_HOME, else `~/.cache/elidir`."""
    if own := os.environ.get("ELIDIR_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "elidir"
