"""drop-visual-tokens: of a picture only the tokens that its class token looks at go on (HiRED).

High-resolution early dropping, arXiv 2408.10945: one budget for all partitions of a picture, dealt
out by what the first layer sees in the whole picture, spent on what a late layer sees in each. What
is new in the program is written by `visual.py`.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Annotated, ClassVar, Literal

from elidir.ir import (
    Cast,
    Compare,
    DType,
    Module,
    Op,
    Reduce,
    Reshape,
    Slice,
    TokensAllot,
    TopK,
    Value,
    emit,
)
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.errors import PipelineError
from elidir.passes.exact.dce import sweep
from elidir.passes.options import Range, Ratio
from elidir.passes.registry import register
from elidir.passes.token_pruning.tower import Tower, VisualError
from elidir.passes.token_pruning.visual import Dropping

Rate = Annotated[float, Range(ge=0.001, le=1)]
Count = Annotated[int, Range(ge=1)]
Index = Annotated[int, Range(ge=0)]


@register
@dataclass(frozen=True)
class DropVisualTokens(Pass):
    """Keep `rate` of the tokens of a picture, chosen by the attention of the tower's class token.

    It is for the part of a vision-language model that leads from pixels [images, partitions, C, H,
    W] through tower and projector to features. The first partition is the whole picture, the others
    are its sub-images, in a `grid` of rows and columns. Of the budget, floor(rate * tokens of all
    partitions), `alpha` is for the whole picture, as far as it has tokens; the rest is dealt out to
    the sub-images by what the class token of the whole picture looks at in layer `first`: the sum
    over the region of each (`variant="paper"`), or how many of the brightest 1 - alpha of all
    patches are in each band of rows (`"code"`, as the authors' program has it). Within a partition
    its own class token of layer `late` decides, by default the last before the projector. A tower
    without one is asked how much attention each token receives. What is left keeps its order.

    With `positions="original"` what is left keeps the positions that it had among all; by default
    the language model counts anew, as the paper has it. That is for whoever puts it into a prompt.

    Pixels may be [images, C, H, W], of one partition each, or of `partitions` one behind the other.

    Before: `%f = linear %patches, @projector : f32[5*B, 576, 64]`. After: with
    `%set = tokens.allot %scores, %shares {keep=0.2 first=0.5}`, the take
    `%few = tokens.take %patches, %set : f32[B, 576, 32]` before the linear, and a result that says
    where the tokens stood.

    `rate=1` changes nothing; `force=true` chooses all the same.
    """

    name = "drop-visual-tokens"
    invariant = Invariant.QUALITY
    neutral: ClassVar = {"rate": 1.0}
    identity: ClassVar = {"rate": 1.0, "force": True}
    pictures = True

    rate: Rate = 0.2
    alpha: Ratio = 0.5
    variant: Literal["paper", "code"] = "paper"
    first: Index = 0
    late: Index | None = None
    grid: tuple[Count, Count] | None = None
    partitions: Count | None = None
    positions: Literal["compact", "original"] = "compact"
    force: bool = False

    def run(self, module: Module, cx: Context) -> PassResult:
        """Write `@forward` anew over the tokens that are kept."""
        if self.rate == 1 and not self.force:
            return cx.unchanged()
        region = module["forward"].region
        try:
            tower = Tower.of(region, self.partitions)
            chooser = self._chooser(tower)
            made = Dropping(region, tower, self._deciding(tower), chooser)
            function = made.function("forward")
        except VisualError as error:
            cx.missed("@forward", error.message)
            return cx.unchanged()
        if not cx.fuel.take(f"{self.name} at @forward"):
            cx.missed("@forward", "no fuel is left")
            return cx.unchanged()
        cx.applied("@forward", f"{chooser.count} of {chooser.whole} tokens of a picture are left")
        if not tower.front:
            cx.applied("@forward", "the tower has no class token: by the attention each receives")
        if reason := made.blocker():
            cx.missed("@forward", f"all tokens go through the projector: {reason}")
        return cx.result(sweep(module.with_function(function)))

    def _deciding(self, tower: Tower) -> tuple[int, int]:
        last = len(tower.layers) - 1
        late = last if self.late is None else self.late
        if max(self.first, late) > last:
            raise PipelineError(
                f"pass '{self.name}' has first={self.first} and late={late}, but the tower has "
                f"layers 0 to {last} before its features; give one of these"
            )
        return self.first, late

    def _chooser(self, tower: Tower) -> "_Chooser":
        chooser = _Chooser(self, tower, self._grid(tower))
        if not chooser.count:
            raise PipelineError(
                f"pass '{self.name}' has rate={self.rate}, which keeps none of "
                f"{chooser.whole} tokens; give more"
            )
        return chooser

    def _grid(self, tower: Tower) -> tuple[int, int]:
        """Return rows and columns of sub-images; raises `VisualError` if they do not fit."""
        parts = tower.parts - 1
        side = round(parts**0.5)
        rows, columns = self.grid or (side, side)
        if rows * columns != parts:
            raise VisualError(
                f"{parts} sub-images are no {rows} by {columns}; give their rows and columns as "
                "grid=(rows, columns)"
            )
        fits = tower.tokens % max(parts, 1) == 0
        if self.variant == "paper" and parts:
            fits = tower.sides[0] % rows == tower.sides[1] % columns == 0
        if not fits:
            down, across = tower.sides
            raise VisualError(
                f"the regions of {rows} by {columns} sub-images have no whole number of the "
                f"{down} by {across} patches"
            )
        return rows, columns


@dataclass(frozen=True)
class _Chooser:
    """Puts together the choice: shares of the sub-images, and the set."""

    options: DropVisualTokens
    tower: Tower
    grid: tuple[int, int]

    @property
    def whole(self) -> int:
        """Tokens of a picture."""
        return self.tower.parts * self.tower.tokens

    @property
    def count(self) -> int:
        """How many of them are kept."""
        return _part(self.options.rate, self.whole)

    def __call__(self, first: Value, late: Value, ops: list[Op]) -> Value:
        shares = None if self.tower.parts == 1 else self._shares(first, ops)
        return emit(ops, TokensAllot(late, shares, self.options.rate, self.options.alpha))

    def _shares(self, first: Value, ops: list[Op]) -> Value:
        """Return what each sub-image has of the whole picture's attention, f32[I, P - 1]."""
        tower, (rows, columns) = self.tower, self.grid
        images, tokens = tower.images, tower.tokens
        seen = emit(ops, Reshape(emit(ops, Slice(first, 1, 0, 1)), (images, tokens)))
        if self.options.variant == "paper":
            down, across = tower.sides
            shape = (images, rows, down // rows, columns, across // columns)
            sums = emit(ops, Reduce(emit(ops, Reshape(seen, shape)), "sum", (2, 4)))
            return emit(ops, Reshape(sums, (images, rows * columns)))
        bright = max(_part(1 - Fraction(str(self.options.alpha)), tokens), 1)
        best = TopK(seen, bright)
        ops.append(best)
        least = emit(ops, Slice(best.results[0], 1, bright - 1, bright))
        marks = emit(ops, Cast(emit(ops, Compare(seen, least, "ge")), DType.F32))
        bands = emit(ops, Reshape(marks, (images, rows * columns, tokens // (rows * columns))))
        return emit(ops, Reduce(bands, "sum", (2,)))


def _part(share: Fraction | float, of: int) -> int:
    return floor(Fraction(str(share)) * of)
