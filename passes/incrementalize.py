"""incrementalize: from a stateless causal `@forward`, derive `@step` with an explicit KV cache.

Here is when that is legal and what it adds to the module; `passes/step.py` builds the function.
Passes that drop work rewrite `@step`; `@forward` stays as it was.
"""

from dataclasses import dataclass, replace

from elidir.ir import KV, Attention, Function, Module, Region, Stage, Symbol
from elidir.passes.analyses import Mixer, State, TokenAxis
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.registry import register
from elidir.passes.step import step_of

REMEDY = "generate() then runs the whole sequence for each token"
PARAMETERS = ("ids", "valid", "pos")


@register
@dataclass(frozen=True)
class Incrementalize(Pass):
    """Derive `@step` over N new and S cached tokens: prefill, decode, verification of drafts.

    Legal where the token axis is mixed by causal attention alone. Each attention gets a cache,
    masks become the caller's `%mask` over key slots (causal, valid, and in trees ancestry), windows
    and biases read the positions of the slots (`%kpos`), and logits are computed for `%rows` only.

    Before: `func @forward(%ids, %valid, %pos)`, `attention %q, %k, %v, mask=%m`.
    After: also `func @step(%ids, %pos, %kpos, %mask, %kv.0, .., %rows)`, with
    `%kv1 = kv.append %kv, %k, %v`, `%k1, %v1 = kv.read %kv1`, `attention %q, %k1, %v1, mask=%m`.
    """

    name = "incrementalize"
    invariant = Invariant.EXACT
    requires = (Stage.RAISED, TokenAxis, State)
    produces = Stage.GRAPH

    def run(self, module: Module, cx: Context) -> PassResult:
        """Add `@step`, or say what stands in the way."""
        forward = module["forward"].region
        reason = _unfit(forward) or _without_tokens(forward, cx.get(TokenAxis))
        if reason:
            cx.missed("@forward", reason, remedy=REMEDY)
            return cx.unchanged()
        for mixer in sorted(cx.get(TokenAxis).blockers, key=_tells_less):
            cx.missed(mixer.op, f"{mixer.op.kind}: {mixer.reason}", remedy=REMEDY)
        if cx.get(TokenAxis).blockers or not cx.fuel.take(f"{self.name} at @forward"):
            return cx.unchanged()
        step = step_of(forward, cx.get(State))
        caches = sum(isinstance(p.type, KV) for p in step.region.params)
        cx.applied("", f"{caches} caches")
        return cx.result(_with_step(module, step))


def _tells_less(mixer: Mixer) -> bool:
    """Whether it is no attention: what is wrong with an attention says most."""
    return mixer.op.kind != Attention.kind


def _unfit(forward: Region) -> str:
    """Return why the parameters of `@forward` are not those of a language model, or ""."""
    names = tuple(p.name for p in forward.params)
    if names != PARAMETERS:
        return f"it reads {', '.join(names)}, not token ids alone"
    if isinstance(forward.params[0].type.dims[1], int):
        return "it was captured at a fixed length"
    return ""


def _without_tokens(forward: Region, axis: TokenAxis) -> str:
    if not axis.mixers:
        return "it has no attention, so there is nothing to cache"
    logits = forward.results[0]
    if not axis.blockers and (axis.axis.get(logits), axis.rows.get(logits)) != (1, 1):
        return "its first result has no token axis"
    return ""


def _with_step(module: Module, step: Function) -> Module:
    length = str(module["forward"].region.params[0].type.dims[1])
    bound = module.symbols[length].hi
    symbols = module.symbols | {
        "N": Symbol(1, bound, "new tokens"),
        "S": Symbol(0, bound, "cached tokens"),
        "R": Symbol(1, bound, "rows of logits"),
    }
    graph = replace(module, symbols=symbols, stage=Stage.GRAPH)
    return graph.with_function(step)
