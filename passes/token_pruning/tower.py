"""Where a vision tower is in a function that leads from pixels to features, read off its shapes.

How many pictures and partitions there are is said by the pixels, how many tokens stand before the
patches by the op that leaves them out. Nothing is rewritten here.
"""

from dataclasses import dataclass
from math import isqrt

import sympy

from elidir.ir import (
    Conv,
    Dim,
    ElidirError,
    Layer,
    Op,
    Region,
    Reshape,
    Slice,
    Tensor,
    Value,
    as_dim,
)


class VisualError(ElidirError):
    """What stands in the way of dropping a picture's tokens."""


@dataclass(frozen=True, eq=False)
class Tower:
    """A vision tower and what is behind it.

    Args:
        images: how many pictures there are.
        parts: partitions of each.
        layers: its layers, in order.
        stream: tokens in them, those before the patches included.
        sides: patches of a partition, down and across.
        features: what the function returns for them, [images * parts, patches, D].
    """

    images: Dim
    parts: int
    layers: tuple[Layer, ...]
    stream: int
    sides: tuple[int, int]
    features: Value

    @property
    def tokens(self) -> int:
        """Patches of a partition."""
        return self.sides[0] * self.sides[1]

    @property
    def front(self) -> int:
        """How many tokens stand before the patches; the first is the class token."""
        return self.stream - self.tokens

    @classmethod
    def of(cls, region: Region, partitions: int | None) -> "Tower":
        """Find the tower in a function; raises `VisualError` where there is none."""
        images, parts = _pictures(region, partitions)
        layers = tuple(op for op in region.ops if isinstance(op, Layer))
        if not layers:
            raise VisualError("it has no layers")
        features = _unshaped(region)
        rows = as_dim(images * parts)
        length, tokens = (_row(v, rows) for v in (layers[-1].results[0], features))
        cut = next((op for op in region.ops if cuts_patches(op, length, tokens)), None)
        if length != tokens and cut is None:
            raise VisualError(
                f"of {length} tokens of a partition come {tokens} features; which comes from which "
                "is not known"
            )
        return cls(images, parts, layers, length, _sides(region, tokens), features)


def _unshaped(region: Region) -> Value:
    """Return the first result as it was before it got its shape."""
    made = {r: op for op in region.ops for r in op.results}
    value = region.results[0]
    while isinstance(op := made.get(value), Reshape):
        value = op.x
    return value


def _row(value: Value, rows: Dim) -> int:
    """Return how many tokens a partition has in a value."""
    dims = value.type.dims
    if len(dims) != 3 or dims[0] != rows or not isinstance(dims[1], int):
        raise VisualError(f"{value!r} is not a row of tokens for each of {rows} partitions")
    return dims[1]


def _pictures(region: Region, partitions: int | None) -> tuple[Dim, int]:
    """Return pictures and partitions of each, read off the pixels."""
    pixels = region.params[0].type
    floats = isinstance(pixels, Tensor) and pixels.dtype.is_float
    if not floats or len(pixels.dims) not in (4, 5):
        raise VisualError(f"it reads {region.params[0].name}, and no pictures")
    rows, found = pixels.dims[:2]
    if len(pixels.dims) == 4:
        return _grouped(rows, partitions or 1)
    if not isinstance(found, int):
        raise VisualError("the number of partitions may vary; compile for one number of them")
    if partitions not in (None, found):
        raise VisualError(f"its pictures have {found} partitions, not {partitions}")
    return rows, found


def _grouped(rows: Dim, parts: int) -> tuple[Dim, int]:
    images = as_dim(sympy.sympify(rows) / parts)
    if not isinstance(images, int) and images.as_numer_denom()[1] != 1:
        raise VisualError(
            f"{rows} partitions need not be a multiple of {parts}; give pictures as "
            "[images, partitions, channels, height, width], or compile with dynamic=False"
        )
    return images, parts


def cuts_patches(op: Op, stream: int, tokens: int) -> bool:
    """Whether an op leaves the patches of a stream and nothing before them."""
    return (
        isinstance(op, Slice)
        and op.axis == 1
        and op.step == 1
        and op.x.type.dims[1:2] == (stream,)
        and (op.start, op.stop) == (stream - tokens, stream)
        and stream != tokens
    )


def _sides(region: Region, tokens: int) -> tuple[int, int]:
    """Return the patches down and across: those of the convolution that makes them, or a square."""
    made = (op.result.type.dims[2:] for op in region.ops if isinstance(op, Conv))
    for sides in made:
        if len(sides) == 2 and sides[0] * sides[1] == tokens:
            return int(sides[0]), int(sides[1])
    side = isqrt(tokens)
    if side * side != tokens:
        raise VisualError(f"how {tokens} tokens lie in a partition is not known")
    return side, side
