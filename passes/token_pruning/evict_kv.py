"""evict-kv: the cache keeps the tokens that matter, and gives up the others (Keyformer and kin).

Keyformer, arXiv 2403.09054; H2O, 2306.14048; SnapKV, 2404.14469; StreamingLLM, 2309.17453; key
norms, 2406.11430. They differ in what a token is worth (`scorers.py`); what is new in the program
is written by `evicting.py`.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from elidir.ir import KV, KvEvict, Module, Op, Region, Stage, Symbol, symbol
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.budget import Budget
from elidir.passes.errors import PipelineError
from elidir.passes.exact.dce import sweep
from elidir.passes.gain import decoding_loss
from elidir.passes.options import Range, Ratio
from elidir.passes.registry import register
from elidir.passes.token_pruning.evicting import HELD, Evicting, N
from elidir.passes.token_pruning.scorers import EVICTION, EvictingError, Seen

Count = Annotated[int, Range(ge=1)]
Tau = Annotated[float, Range(ge=0.01)]


@register
@dataclass(frozen=True)
class EvictKv(Pass):
    """Keep a part of the cached tokens, those that attention needs; the memory of others is freed.

    Of a prompt `keep` stays, and then each new token takes the place of another: the cache stays as
    long as it is, or grows to `at_least`. With `tokens` or `bytes` it may hold so much in each row.
    Each key head keeps its own tokens, but where layers read positions (windows, ALiBi) the heads
    of a layer decide together. Positions stay what they were.

    `scorer` says what a token is worth: what it got of all attention (`h2o`), the same with Gumbel
    noise at a temperature that rises over `tau_steps` tokens (`keyformer`), what it or a neighbour
    gets of a prompt's last `window` queries (`snapkv`, which evicts from prompts alone: what is
    generated stays until the next one), its age (`streaming`), or that its key is short (`knorm`).
    The newest stay, `recent` of what stays, and the first `sinks`; by default as each method's
    paper has it, though no more of the window than a half of the least that stays.

    Before: `%kv1 = kv.append %kv, ..` is what a layer yields. After: states are placed, masks come
    from `mask.state`, `%kv2 = kv.evict %kv1, %scores` is yielded, and `@prefill` reads prompts.

    `keep=1` changes nothing, nor does it where no token is decoded faster on the target;
    `force=true` writes the program all the same.
    """

    name = "evict-kv"
    invariant = Invariant.QUALITY
    requires = (Stage.GRAPH,)
    neutral: ClassVar = {"keep": 1.0}
    identity: ClassVar = {"keep": 1.0, "force": True}

    keep: Annotated[float, Range(ge=0.01, le=1)] = 0.5
    tokens: Count | None = None
    bytes: str | None = None
    scorer: Literal["h2o", "keyformer", "snapkv", "streaming", "knorm"] = "snapkv"
    at_least: Count = 64
    recent: Ratio | None = None
    sinks: Annotated[int, Range(ge=0)] | None = None
    noise: bool = True
    seed: Annotated[int, Range(ge=0)] = 0
    tau: tuple[Tau, Tau] = (1.0, 2.0)
    tau_steps: Count = 512
    window: Count = 16
    near: Annotated[int, Range(ge=0)] = 7
    pool: Literal["max", "mean"] = "max"
    force: bool = False

    def run(self, module: Module, cx: Context) -> PassResult:
        """Check that the cache may be evicted from, and write both programs."""
        step = module["step"].region
        states = [p.type for p in step.params if isinstance(p.type, KV)]
        budget = self._budget(states)
        if budget.is_all and not self.force:
            return cx.unchanged()
        least, bound = min(self.at_least, budget.most or self.at_least), module.symbols["N"].hi
        reason = _obstacle(states)
        if bound is not None and least >= bound:
            reason = f"at_least={least} stay of a prompt, and the model takes no more than {bound}"
        if reason or not cx.fuel.take(f"{self.name} at @step"):
            cx.missed("@step", reason or "no fuel is left")
            return cx.unchanged()
        try:
            new = self._written(module, budget, least)
        except EvictingError as error:
            cx.missed("@step", error.message)
            return cx.unchanged()
        new = sweep(new)
        if not self.force and cx.target and (reason := decoding_loss(module, new, cx.target)):
            cx.missed("@step", reason, remedy="force=true runs it all the same")
            return cx.unchanged()
        cx.applied("@prefill", f"{budget} stay, by {self.scorer}")
        if _reads_positions(step):
            cx.applied("@step", "heads decide together: layers read the positions of cached tokens")
        return cx.result(new)

    def _budget(self, states: list[KV]) -> Budget:
        sizes = [s.heads * (s.key_dim + s.value_dim) * s.dtype.bytes for s in states]
        known = [n for n in sizes if isinstance(n, int)]
        budget = Budget.of(self.keep, self.tokens, self.bytes, max(sum(known), 1))
        sinks = EVICTION[self.scorer].sinks if self.sinks is None else self.sinks
        if budget.most is not None and budget.most <= sinks:
            raise PipelineError(
                f"pass '{self.name}' may hold {budget.most} tokens, and keeps the first {sinks}; "
                f"give more than {sinks}"
            )
        return budget

    def _written(self, module: Module, budget: Budget, least: int) -> Module:
        """Return the module with both programs."""
        step, prefill = module["step"].region, module.functions.get("prefill")
        bound, symbols = module.symbols["N"].hi, dict(module.symbols)
        symbols.setdefault("P", Symbol(least + 1, bound, "tokens of a prompt"))
        symbols[str(HELD)] = Symbol(0, bound, "tokens that a state holds")
        prompt = symbol("P") if prefill is None else prefill.region.params[0].type.dims[1]
        fewest = max(symbols[str(prompt)].lo, least + 1)
        method, shared = EVICTION[self.scorer], _reads_positions(step)
        # Whoever evicts has more tokens than `least`: nothing of the window is padding.
        options = replace(self, window=min(self.window, least))
        recent = method.recent if self.recent is None else self.recent
        recent = min(options.window, (least + 1) // 2) if recent is None else recent
        scored = method.by != "age" and method.in_step

        def rule(seen: Seen, ops: list[Op]) -> KvEvict | None:
            if not seen.prompt and not method.in_step:
                return None
            return KvEvict(
                seen.append.result,
                method.scorer(seen, ops, options) if method.scorer else None,
                method.by,
                seen.new,
                budget.keep if seen.prompt or budget.keep == 1 else 0.0,
                least,
                budget.most,
                recent,
                method.sinks if self.sinks is None else self.sinks,
                shared,
                fewest if seen.prompt else 0,
                method.in_step,
                loc=seen.append.loc,
            )

        reader = Evicting(step, rule, prompt, True, scored)
        if prefill is not None:
            reader = Evicting(prefill.region, rule, N, True, scored)
        new = replace(module, symbols=symbols)
        new = new.with_function(Evicting(step, rule, N, False, scored).function("step"))
        return new.with_function(reader.function("prefill"))


def _obstacle(states: list[KV]) -> str:
    """Return why the states cannot evict, or ""."""
    if any(s.scored for s in states) or any(str(s.length) == str(HELD) for s in states):
        return "its states evict already; give one budget"
    if not all(s.value_dim for s in states):
        return "tokens that were dropped come back to its states; give prune-tokens{revive=0}"
    return ""


def _reads_positions(step: Region) -> bool:
    kpos = next(p for p in step.params if p.name == "kpos")
    return any(kpos in op.operands() for op in step.ops)
