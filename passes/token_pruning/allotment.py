"""One budget for all partitions of a picture, and what each has of it: HiRED, arXiv 2408.10945.

The whole picture gets a fixed part, its sub-images what its class token sees in the region of each.
Scores are given; how they are read, and what becomes of the tokens, is in `visual.py`.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor

from elidir.ir import (
    Cast,
    Compare,
    DType,
    Op,
    Reduce,
    Reshape,
    Slice,
    TokensAllot,
    TopK,
    Value,
    emit,
)
from elidir.passes.token_pruning.tower import Tower, VisualError


@dataclass(frozen=True)
class Allotment:
    """A budget over the partitions of a picture.

    Args:
        tower: whose tokens they are.
        grid: rows and columns of sub-images.
        rate: the part of all tokens that is kept.
        alpha: the part of these that is the whole picture's.
        variant: `paper` deals out by sums over regions, `code` by bright patches in bands of rows.
    """

    tower: Tower
    grid: tuple[int, int]
    rate: float
    alpha: float
    variant: str

    def __post_init__(self) -> None:
        """Check that the regions of sub-images have whole patches; raises `VisualError`."""
        tower, parts, (rows, columns) = self.tower, self.tower.parts - 1, self.grid
        fits = tower.tokens % max(parts, 1) == 0
        if self.variant == "paper" and parts:
            fits = tower.sides[0] % rows == tower.sides[1] % columns == 0
        if not fits:
            down, across = tower.sides
            raise VisualError(
                f"the regions of {rows} by {columns} sub-images have no whole number of the "
                f"{down} by {across} patches"
            )

    @property
    def whole(self) -> int:
        """Tokens of a picture."""
        return self.tower.parts * self.tower.tokens

    @property
    def count(self) -> int:
        """How many of them are kept."""
        return _part(self.rate, self.whole)

    def chosen(self, first: Value, late: Value, ops: list[Op]) -> Value:
        """Append the choice by the scores of two layers, each [images, parts, patches]."""
        shares = None if self.tower.parts == 1 else self._shares(first, ops)
        return emit(ops, TokensAllot(late, shares, self.rate, self.alpha))

    def _shares(self, first: Value, ops: list[Op]) -> Value:
        """Return what each sub-image has of the whole picture's attention, f32[I, P - 1]."""
        tower, (rows, columns) = self.tower, self.grid
        images, tokens = tower.images, tower.tokens
        seen = emit(ops, Reshape(emit(ops, Slice(first, 1, 0, 1)), (images, tokens)))
        if self.variant == "paper":
            down, across = tower.sides
            shape = (images, rows, down // rows, columns, across // columns)
            sums = emit(ops, Reduce(emit(ops, Reshape(seen, shape)), "sum", (2, 4)))
            return emit(ops, Reshape(sums, (images, rows * columns)))
        bright = max(_part(1 - Fraction(str(self.alpha)), tokens), 1)
        best = TopK(seen, bright)
        ops.append(best)
        least = emit(ops, Slice(best.results[0], 1, bright - 1, bright))
        marks = emit(ops, Cast(emit(ops, Compare(seen, least, "ge")), DType.F32))
        bands = emit(ops, Reshape(marks, (images, rows * columns, tokens // (rows * columns))))
        return emit(ops, Reduce(bands, "sum", (2,)))


def grid_of(tower: Tower, given: tuple[int, int] | None) -> tuple[int, int]:
    """Return rows and columns of sub-images, a square by default; raises `VisualError`."""
    parts = tower.parts - 1
    side = round(parts**0.5)
    rows, columns = given or (side, side)
    if rows * columns != parts:
        raise VisualError(
            f"{parts} sub-images are no {rows} by {columns}; give their rows and columns as "
            "grid=(rows, columns)"
        )
    return rows, columns


def _part(share: Fraction | float, of: int) -> int:
    return floor(Fraction(str(share)) * of)
