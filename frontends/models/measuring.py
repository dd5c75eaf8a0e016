"""How long a compiled language model takes on this host: its prefill, and each token after it.

The figures stand beside the predictions of the cost model, which imports no torch; so they are
handed over as its `Measured`. Tokens are random numbers: the time of programs does not depend on
them, but for tokens that come back.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from elidir.backends.runtime import Decoder, LanguageModel, Opening, Prompt, Rows, Session
from elidir.cost_models import Measured
from elidir.frontends.program import Program
from elidir.ir import DType

RUNS = 5
TOKENS = 16
"""So many decoded tokens are timed in each run, if the request asks for as many."""


def runs_in(program: Program) -> DType:
    """Return the dtype that floats of a program run in."""
    kinds = (e.type.dtype for e in program.module.weights.values())
    own = next((k for k in kinds if k.is_float), DType.F32)
    return program.options.dtype or own


@dataclass(frozen=True)
class _Sizes:
    """What is run: rows, tokens of the prompt, tokens cached when decoding begins, new tokens."""

    batch: int
    prompt: int
    context: int
    new: int


def measure_program(
    program: Program, model: LanguageModel, request: Mapping[str, Any]
) -> list[Measured]:
    """Return the seconds of prefills and of single decoded tokens, after a run to warm up.

    Args:
        program: what is measured.
        model: the program as `generate` runs it.
        request: batch, prompt, context and new as `elidir.cost_models.report` takes them.
    """
    prompt = request.get("prompt", 512)
    context = request.get("context") or prompt
    sizes = _Sizes(request.get("batch", 1), prompt, context, request.get("new", 128))
    _run(model, sizes)
    found: dict[str, list[float]] = {}
    for _ in range(RUNS):
        for name, values in _run(model, sizes).items():
            found.setdefault(name, []).extend(values)
    how = f"{_how(program)}, random tokens"
    return [_summary(name, values, how) for name, values in found.items()]


def measure_call(phase: str, run: Callable[[], Any], program: Program) -> Measured:
    """Return the seconds of calls that are one phase of a program, after one to warm up."""
    run()
    values = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        values.append(time.perf_counter() - started)
    return _summary(phase, values, _how(program))


def _how(program: Program) -> str:
    backends = " and ".join(program.options.backends)
    threads = f"{torch.get_num_threads()} threads"
    return f"{backends} backend, {threads}, {runs_in(program).value}"


def _summary(name: str, values: list[float], how: str) -> Measured:
    middle = statistics.median(values)
    return Measured("cpu", name, middle, min(values), max(values), len(values), how)


def _run(model: LanguageModel, sizes: _Sizes) -> dict[str, list[float]]:
    """Return the seconds of each step of a phase, by the names that the cost model gives them."""
    decoder = _open(model, sizes, sizes.prompt)
    names = ("prefill", "decode")
    if not isinstance(decoder, Session):
        names = ("forward", "decode without a cache")
    first = _fed(decoder, _ids(model, sizes.batch, sizes.prompt))
    steps = min(max(sizes.new - 1, 0), TOKENS)
    if not steps:
        return {names[0]: [first]}
    if sizes.context != sizes.prompt:
        decoder = _open(model, sizes, sizes.context)
        _fed(decoder, _ids(model, sizes.batch, sizes.context))
    tokens = [_ids(model, sizes.batch, 1) for _ in range(steps)]
    return {names[0]: [first], names[1]: [_fed(decoder, ids) for ids in tokens]}


def _fed(decoder: Decoder, ids: torch.Tensor) -> float:
    """Return the seconds in which a decoder takes tokens."""
    started = time.perf_counter()
    decoder.feed(ids, rows=Rows.LAST)
    return time.perf_counter() - started


def _open(model: LanguageModel, sizes: _Sizes, length: int) -> Decoder:
    prompt = Prompt(_ids(model, sizes.batch, length), None)
    return model.open(Opening(prompt, length + TOKENS, use_cache=True))


def _ids(model: LanguageModel, batch: int, length: int) -> torch.Tensor:
    return torch.randint(model.vocabulary or 1, (batch, length))
