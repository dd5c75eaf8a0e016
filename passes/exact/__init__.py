"""Exact passes: the outputs stay the same within the dtype's tolerance.

One file a pass. They clean up, fold what is known before the program runs, and fuse ops that a
backend runs faster as one; none of them needs data or knows a model's class.
"""

from elidir.passes.exact.canonicalize import Canonicalize
from elidir.passes.exact.cse import Cse
from elidir.passes.exact.dce import Dce
from elidir.passes.exact.fold_constants import FoldConstants
from elidir.passes.exact.fuse_add_norm import FuseAddNorm
from elidir.passes.exact.fuse_gated_ffn import FuseGatedFfn
from elidir.passes.exact.fuse_projections import FuseProjections
from elidir.passes.exact.fuse_quantize import FuseQuantize
from elidir.passes.exact.move_gathers import MoveGathers

__all__ = [
    "Canonicalize",
    "Cse",
    "Dce",
    "FoldConstants",
    "FuseAddNorm",
    "FuseGatedFfn",
    "FuseProjections",
    "FuseQuantize",
    "MoveGathers",
]
