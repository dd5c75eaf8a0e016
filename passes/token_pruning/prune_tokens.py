"""prune-tokens: prompt tokens that the last one does not look at stop at some layer (LazyLLM).

Progressive pruning over layers, arXiv 2407.14057: before some layers, the tokens that the last
token attends to least go no further, until a later token attends to them. Their keys stay in the
layers that they reached. What is new in the program is written by `narrowing.py`.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from elidir.ir import KV, Attention, Function, Layer, Module, Opaque, Region, Stage, Symbol
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.errors import PipelineError
from elidir.passes.exact.dce import sweep
from elidir.passes.exact.move_gathers import move_gathers
from elidir.passes.gain import Gain
from elidir.passes.observed import ATTENTION_LOST
from elidir.passes.options import Range
from elidir.passes.registry import register
from elidir.passes.token_pruning.deciding import Choice, Revival, coming
from elidir.passes.token_pruning.narrowing import Narrowing, NarrowingError, cached
from elidir.passes.token_pruning.placing import left, place
from elidir.passes.token_pruning.scorers import SCORERS

LONG = 4096  # tokens of a prompt: what does not pay here pays at no length
Keep = Annotated[float, Range(ge=0.01, le=1)]


@register
@dataclass(frozen=True)
class PruneTokens(Pass):
    """Drop prompt tokens before some layers: `keep` of them go on past each.

    `at` are the layers, counted from 0, before which tokens are dropped; by default it is the one
    at three fifths of the depth. With `work`, the share of the layers' work that is to be left,
    calibration finds as many layers as `keep` has parts, at which later layers lose least of the
    last token's attention. `keep` is one part for all or one for each. A prompt of `at_least`
    tokens or fewer is left whole, and no fewer ever go on. The last token always goes on, and
    positions stay what they were.

    Dropped tokens are parked: in each step, at each cut, those come back that get more than `above`
    of the wanted tokens' attention, the `revive` highest at most, to go through the later layers
    once.

    Before: `@step` over N new tokens. After: `@step` drops nothing but takes states of their own
    length for the later layers, and `@prefill` reads a prompt: with `%t = score.attention ..` and
    `%s = tokens.select %t, ..` in the layer before, `%h = tokens.take %h, %s` for the layers after.
    `tokens.revive` names the tokens that come back, whose rows `%parked` has kept.

    `keep=1` changes nothing; `force=true` selects all the same.
    """

    name = "prune-tokens"
    invariant = Invariant.QUALITY
    requires = (Stage.GRAPH,)
    needs = (ATTENTION_LOST,)
    neutral: ClassVar = {"keep": 1.0}
    identity: ClassVar = {"keep": 1.0, "force": True}

    keep: Keep | tuple[Keep, ...] = 0.2
    at: tuple[Annotated[int, Range(ge=1)], ...] | None = None
    work: Annotated[float, Range(ge=0.05, le=1)] | None = None
    at_least: Annotated[int, Range(ge=1)] = 448
    revive: Annotated[int, Range(ge=0)] = 8
    above: Annotated[float, Range(ge=0, le=1)] = 0.004
    scorer: Literal["last-row"] = "last-row"
    force: bool = False

    def needed(self) -> tuple[str, ...]:
        """Return what calibration must have seen: nothing where the layers are given."""
        return () if self.work is None or self.at is not None else self.needs

    def run(self, module: Module, cx: Context) -> PassResult:
        """Check that tokens may be dropped, and write both programs."""
        kept = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if set(kept) <= {1.0} and not self.force:
            return cx.unchanged()
        step = module["step"].region
        layers = [op for op in step.ops if isinstance(op, Layer)]
        reason = _obstacle(step, layers)
        if not reason:
            cuts, bound = self._cuts(len(layers), cx), module.symbols["N"].hi
            reason = next(filter(None, map(_closed, layers[cuts[0] - 1 :])), "")
            if bound is not None and bound <= self.at_least:
                reason = f"a prompt is left whole up to at_least={self.at_least}; it takes {bound}"
        if reason or not cx.fuel.take(f"{self.name} at @step"):
            cx.missed("@step", reason or "no fuel is left")
            return cx.unchanged()
        kept = kept * len(cuts) if len(kept) == 1 else kept
        try:
            functions = self._written(step, cuts, Choice(kept, self.at_least), cx)
        except NarrowingError as error:
            cx.missed("@step", error.message)
            return cx.unchanged()
        back = len(functions[0].region.params) > len(step.params)
        new = replace(module, symbols=module.symbols | self._symbols(module, cuts, back))
        for function in functions:
            new = new.with_function(function)
        new = move_gathers(sweep(new), cx)
        if not self.force and cx.target and (reason := _loses(module, new, cx.target)):
            cx.missed("@step", reason, remedy="force=true runs it all the same")
            return cx.unchanged()
        parts = ", ".join(f"{k:g} before layer {c}" for k, c in zip(kept, cuts, strict=True))
        cx.applied("@prefill", f"of a prompt go on: {parts}")
        return cx.result(new)

    def _written(
        self, step: Region, cuts: tuple[int, ...], choice: Choice, cx: Context
    ) -> list[Function]:
        """Return `@step` and `@prefill`; what stands in the way of a revival is a remark."""

        def written(revival: Revival | None) -> list[Function]:
            whole = Narrowing(step, cuts, scorer, revival=revival).function("step")
            return [whole, Narrowing(step, cuts, scorer, choice, revival).function("prefill")]

        scorer = SCORERS[self.scorer]
        try:
            return written(Revival(self.revive, self.above) if self.revive else None)
        except NarrowingError as error:
            if self.revive:
                cx.missed("@step", f"what is dropped does not come back: {error.message}")
        return written(None)

    def _cuts(self, layers: int, cx: Context) -> tuple[int, ...]:
        """Return the layers to prune before; raises `PipelineError` where there are none such."""
        cuts = self._placed(layers, cx) if self.needed() else self.at
        if cuts is None:
            parts = len(self.keep) if isinstance(self.keep, tuple) else 1
            cuts = tuple(sorted({max(layers * (3 + i) // (4 + parts), 1) for i in range(parts)}))
        if not cuts or list(cuts) != sorted(set(cuts)) or cuts[-1] >= layers:
            raise PipelineError(
                f"pass '{self.name}' cannot prune before layers {cuts} of {layers}; give rising "
                f"numbers from 1 to {layers - 1}"
            )
        if isinstance(self.keep, tuple) and len(self.keep) != len(cuts):
            raise PipelineError(
                f"pass '{self.name}' has keep={self.keep} for {len(cuts)} layers; give one part, "
                "or as many as layers"
            )
        return cuts

    def _placed(self, layers: int, cx: Context) -> tuple[int, ...] | None:
        """Return the layers that calibration finds, None where it saw other layers than these."""
        seen = cx.observation(ATTENTION_LOST)
        parts = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if len(seen.lost) != layers or self.work is None:
            cx.missed("", f"calibration saw {len(seen.lost)} attentions, not {layers} layers")
            return None
        if len(parts) >= layers:
            raise PipelineError(
                f"pass '{self.name}' has keep={self.keep} for {layers} layers; give fewer parts"
            )
        cuts, lost = place(seen, parts, self.work)
        share = left(cuts, parts, layers)
        if share > self.work:
            cx.missed("", f"no layers leave as little as {self.work:.0%}; give a smaller keep=")
        cx.applied("", f"calibrated: {share:.0%} of the layers' work, {lost:.1%} of attention lost")
        return cuts

    def _symbols(self, module: Module, cuts: tuple[int, ...], back: bool) -> dict[str, Symbol]:
        bound, found = module.symbols["N"].hi, dict[str, Symbol]()
        found["P"] = Symbol(self.at_least + 1, bound, "tokens of a prompt")
        for group, cut in enumerate(cuts, 1):
            found[str(cached(group))] = Symbol(0, bound, f"tokens cached from layer {cut} on")
            if back:
                origin = f"tokens that come back at layer {cut}"
                found[str(coming(group))] = Symbol(0, self.revive, origin, usual=1)
        return found


def _obstacle(step: Region, layers: list[Layer]) -> str:
    """Return why tokens cannot be dropped anywhere, or ""."""
    if any(isinstance(p.type, KV) and p.type.placed for p in step.params):
        order = "to evict too, give prune-tokens{revive=0} first, then evict-kv"
        return f"its states hold tokens of their own choice already; {order}"
    if len(layers) < 2:
        return "it has no two layers to drop tokens between"
    return ""


def _loses(before: Module, after: Module, target: str) -> str:
    """Return that no prompt is read faster on a target, or ""."""
    gain = Gain.of(before, after, target, LONG)
    return "" if gain.pays else f"{gain}, nor is a shorter prompt read faster"


def _closed(layer: Layer) -> str:
    """Return why a layer can neither decide nor be given fewer tokens, or ""."""
    found = [op for op in layer.body.region.ops if isinstance(op, Attention)]
    if len(found) != 1:
        return f"{layer.scope} has {len(found)} attentions; which one decides is not known"
    for op in layer.body.region.ops:
        if isinstance(op, Opaque) and '"dim"' in op.args:
            return f"{layer.scope}: {op.target} is given a number of tokens, which would change"
    return ""
