"""drop-visual-tokens: of a picture only the tokens that its class token looks at go on (HiRED).

High-resolution early dropping, arXiv 2408.10945: one budget for all partitions of a picture, dealt
out by what the first layer sees in the whole picture, spent on what a late layer sees in each. What
is new in the program is written by `visual.py` and `allotment.py`.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from elidir.ir import Module
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.errors import PipelineError
from elidir.passes.exact.dce import sweep
from elidir.passes.gain import picture_loss
from elidir.passes.options import Range, Ratio
from elidir.passes.registry import register
from elidir.passes.token_pruning.allotment import Allotment, grid_of
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
    without one, or with `scorer="received"`, is asked how much attention each token receives.

    What is left keeps its order, and in a prompt the positions that it had among all; with
    `positions="compact"` the language model counts anew, as the paper has it.

    Pixels may be [images, C, H, W], of one partition each, or of `partitions` one behind the other.

    Before: `%f = linear %patches, @projector : f32[5*B, 576, 64]`. After: with
    `%set = tokens.allot %scores, %shares {keep=0.2 first=0.5}`, the take
    `%few = tokens.take %patches, %set : f32[B, 576, 32]` before the linear, and a result that says
    where the tokens stood.

    `rate=1` changes nothing, nor does it where no answer comes sooner on the target, if what reads
    the features is known; `force=true` chooses all the same.
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
    positions: Literal["compact", "original"] = "original"
    scorer: Literal["class-token", "received"] | None = None
    force: bool = False

    def run(self, module: Module, cx: Context) -> PassResult:
        """Write `@forward` anew over the tokens that are kept."""
        if self.rate == 1 and not self.force:
            return cx.unchanged()
        region = module["forward"].region
        try:
            tower = Tower.of(region, self.partitions)
            allotment = self._allotment(tower)
            by_class = self._by_class(tower)
            made = Dropping(region, tower, self._deciding(tower), by_class, allotment.chosen)
            new = sweep(module.with_function(made.function("forward")))
        except VisualError as error:
            cx.missed("@forward", error.message)
            return cx.unchanged()
        tokens = allotment.whole, allotment.count
        if reason := self._loss((module, new), tokens, cx):
            cx.missed("@forward", reason, remedy="force=true runs it all the same")
            return cx.unchanged()
        if not cx.fuel.take(f"{self.name} at @forward"):
            cx.missed("@forward", "no fuel is left")
            return cx.unchanged()
        cx.applied("@forward", f"{tokens[1]} of {tokens[0]} tokens of a picture are left")
        if not tower.front:
            cx.applied("@forward", "the tower has no class token: by the attention each receives")
        if reason := made.blocker():
            cx.missed("@forward", f"all tokens go through the projector: {reason}")
        return cx.result(new)

    def _by_class(self, tower: Tower) -> bool:
        """Whether the class token decides; raises `VisualError` if it should and is not there."""
        if self.scorer == "class-token" and not tower.front:
            raise VisualError("the tower has no class token; give scorer=received")
        return bool(tower.front) and self.scorer != "received"

    def _loss(self, seen: tuple[Module, Module], tokens: tuple[int, int], cx: Context) -> str:
        """Return that fewer tokens do not pay, if what reads them is known, or ""."""
        if cx.reader is None or not cx.target or self.force:
            return ""
        compact = self.positions == "compact"
        return picture_loss(seen, cx.reader, tokens, cx.target, compact=compact)

    def _deciding(self, tower: Tower) -> tuple[int, int]:
        last = len(tower.layers) - 1
        late = last if self.late is None else self.late
        if max(self.first, late) > last:
            raise PipelineError(
                f"pass '{self.name}' has first={self.first} and late={late}, but the tower has "
                f"layers 0 to {last} before its features; give one of these"
            )
        return self.first, late

    def _allotment(self, tower: Tower) -> Allotment:
        given = (self.rate, self.alpha, self.variant)
        found = Allotment(tower, grid_of(tower, self.grid), *given)
        if not found.count:
            raise PipelineError(
                f"pass '{self.name}' has rate={self.rate}, which keeps none of "
                f"{found.whole} tokens; give more"
            )
        return found
