"""Whether int8 can pay on a target, by its cost model: prefill and one token, before and after.

Nothing is decided about quality here, and nothing is rewritten.
"""

from elidir.cost_models import (
    Arithmetic,
    Model,
    Precision,
    Request,
    Target,
    Work,
    lines,
    load_target,
    prefill,
    waterfall,
)
from elidir.ir import Module

INTEGERS = Arithmetic("matrix", "i8")
PROMPT = 512


def why_not(before: Module, after: Module, name: str) -> str:
    """Return why the rewritten module cannot pay on a target, with the break-even; "" if it can."""
    target = load_target(name)
    prompt = min(PROMPT, *(_bound(m) for m in (before, after)))
    old, new = waterfall([("", before), ("", after)], [target], prompt=prompt)
    if new.prefill_seconds < old.prefill_seconds or new.decode_seconds < old.decode_seconds:
        return ""
    lost = new.prefill_seconds - old.prefill_seconds
    times = f"{old.prefill_seconds * 1e3:.3g} to {new.prefill_seconds * 1e3:.3g} ms"
    return (
        f"the cost model of {target.name} sees no gain: prefill of {prompt} tokens goes from "
        f"{times}, and {_break_even(after, target, prompt, lost)}"
    )


def _bound(module: Module) -> int:
    """Return the longest prompt that leaves the module room for one more token."""
    length = module["forward"].region.params[0].type.dims[1:2]
    if length and isinstance(length[0], int):
        return length[0]
    bounds = [module.symbols[str(d)].hi for d in length if str(d) in module.symbols]
    return max(1, min([PROMPT, *(b - 1 for b in bounds if b is not None)]))


def _break_even(after: Module, target: Target, prompt: int, lost: float) -> str:
    phase = prefill(after, Request(prompt=prompt))
    works = [
        (line.count, work.evaluate(phase.bindings))
        for line in lines(after, phase.function, Precision())
        for work in line.works
    ]
    flops = sum(count * work.flops.get(INTEGERS, 0) for count, work in works)
    seconds = Model(target).cost(Work({INTEGERS: flops})).seconds
    if seconds <= lost:
        return "no rate of int8 products would bring one"
    return f"it would pay with int8 products {seconds / (seconds - lost):.2f} times as fast"
