"""Other sizes in the place of some: how a region is rebuilt over fewer or other tokens.

Result types are inferred when an op is made, so what is left to change are sizes in attributes.
"""

from collections.abc import Mapping
from typing import Any

import sympy

from elidir.ir import Dim, Mask, Op, Tensor, as_dim

Sizes = Mapping[sympy.Expr, Dim]


def resized(op: Op, sizes: Sizes) -> dict[str, Any]:
    """Return the attributes of an op that change when some symbols stand for other sizes."""
    old = op.attributes()
    new = {name: with_sizes(item, sizes) for name, item in old.items()}
    return {name: item for name, item in new.items() if item != old[name]}


def with_sizes(item: Any, sizes: Sizes) -> Any:
    """Return a dimension, a type, or a tuple of these, over the other sizes."""
    if isinstance(item, tuple):
        return tuple(with_sizes(i, sizes) for i in item)
    if isinstance(item, Tensor):
        return Tensor(with_sizes(item.dims, sizes), item.dtype)
    if isinstance(item, Mask):
        return Mask(with_sizes(item.dims, sizes))
    return as_dim(item.xreplace(dict(sizes))) if isinstance(item, sympy.Expr) else item
