"""Whether int8 can pay on a target, and how fast its products would have to be.

Nothing is decided about quality here, and nothing is rewritten.
"""

from elidir.cost_models import Arithmetic, Model, Precision, Request, Work, lines, prefill
from elidir.ir import Module
from elidir.passes.gain import Gain

INTEGERS = Arithmetic("matrix", "i8")
PROMPT = 512


def why_not(before: Module, after: Module, target: str) -> str:
    """Return why the rewritten module cannot pay on a target, with the break-even; "" if it can."""
    gain = Gain.of(before, after, target, PROMPT)
    return "" if gain.pays else f"{gain}, and {_break_even(after, gain)}"


def _break_even(after: Module, gain: Gain) -> str:
    phase = prefill(after, Request(prompt=gain.prompt))
    works = [
        (line.count, work.evaluate(phase.bindings))
        for line in lines(after, phase.function, Precision())
        for work in line.works
    ]
    flops = sum(count * work.flops.get(INTEGERS, 0) for count, work in works)
    seconds = Model(gain.target).cost(Work({INTEGERS: flops})).seconds
    lost = gain.prefill[1] - gain.prefill[0]
    if seconds <= lost:
        return "no rate of int8 products would bring one"
    return f"it would pay with int8 products {seconds / (seconds - lost):.2f} times as fast"
