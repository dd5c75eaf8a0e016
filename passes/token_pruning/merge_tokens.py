"""merge-tokens: in each layer of an encoder the tokens most alike become one (ToMe).

Token merging, arXiv 2210.09461: no token is dropped, two that have much the same keys go on as
their mean. What is new in the program is written by `merging.py`.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from elidir.ir import Module
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.dce import sweep
from elidir.passes.gain import reading_loss
from elidir.passes.options import Range
from elidir.passes.registry import register
from elidir.passes.token_pruning.merging import Merging

USUAL = 512  # tokens of a text


@register
@dataclass(frozen=True)
class MergeTokens(Pass):
    """Merge tokens that are alike, `share` of them in each layer of an encoder.

    It is for models that read a whole text or picture at once, without `@step`. A layer takes part
    if its attention over its own tokens is all that mixes them, without a bias and under no other
    mask than which tokens are valid. A token that is read by itself behind the layers (a class
    token) merges with none; whatever else is read there has all its tokens again.

    Before, in each layer::

        %a = attention %q, %k, %v : f32[B, 10, 8]
        %h1 = add %h, %a : f32[B, 10, 8]

    After, where %sizes says how many tokens each stands for and %b is its logarithm::

        %a = attention %q, %k, %v, bias=%b : f32[B, 10, 8]
        %h1 = add %h, %a : f32[B, 10, 8]
        %m = reduce %k {fn="mean" axes=(1)} : f32[B, 10, 4]
        %into, %sizes1 = tokens.match %m, %sizes {share=0.2 protect=1} : i64[B, 10], i64[B, 9]
        %h2 = tokens.merge %h1, %sizes, %into, %sizes1 : f32[B, 9, 8]

    `share=0` changes nothing, nor does it where no call gets faster on the target; `force=true`
    puts ops in all the same, which may merge none.
    """

    name = "merge-tokens"
    invariant = Invariant.QUALITY
    neutral: ClassVar = {"share": 0.0}
    identity: ClassVar = {"share": 0.0, "force": True}

    share: Annotated[float, Range(ge=0, le=0.5)] = 0.05
    force: bool = False

    def run(self, module: Module, cx: Context) -> PassResult:
        """Write `@forward` anew over tokens that merge where they may."""
        if not self.share and not self.force:
            return cx.unchanged()
        if "step" in module.functions:
            cx.missed(
                "@step", "tokens read one by one cannot merge", remedy="prune-tokens drops some"
            )
            return cx.unchanged()
        merging = Merging(
            module["forward"].region,
            self.share,
            lambda layer: cx.fuel.take(f"{self.name} at {layer.scope}"),
            lambda layer, reason: cx.missed(layer.scope, reason),
        )
        made = merging.function("forward")
        if not merging.layers:
            if not any(module.layers()):
                cx.missed("@forward", "it has no layers")
            return cx.unchanged()
        new = sweep(module.with_function(made))
        if not self.force and cx.target and (reason := reading_loss(module, new, cx.target, USUAL)):
            cx.missed("@forward", reason, remedy="force=true runs it all the same")
            return cx.unchanged()
        cx.applied(
            "@forward", f"{self.share:g} of the tokens merge in each of {merging.layers} layers"
        )
        return cx.result(new)
