"""extract-outliers on every named family: near the dense model, rows independent, in any order."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from elidir.backends import WeightStore
from elidir.frontends.calibration import CalibrationError, Network, observe
from elidir.ir import LinearInt8, Module, Stage, Value
from elidir.passes import LINEAR_INPUTS, Pipeline, passes
from tests.frontends.families import CAUSAL, Family, arguments, executable, family, flat, of_kind
from tests.zoo import NAMED

PASS = "extract-outliers{fraction=0.2 clip=1}"
LENGTHS = ((2, 9), (3, 5), (1, 12))


@functools.cache
def observed(name: str) -> dict[str, Any]:
    """Observations of a family over a few of its own inputs, those of the tests among them."""
    known = family(name)
    network = Network(known.module, WeightStore(known.raised.tensors), known.raised.inputs)
    feeds = network.feeds([known.entry.example(*sizes) for sizes in LENGTHS])
    return dict(observe(network, feeds, (LINEAR_INPUTS,)).found)


def compiled(known: Family, pipeline: str) -> Module:
    """The family's module after a pipeline."""
    found = observed(known.entry.name)
    return Pipeline.parse(pipeline).run(known.module, observations=found).module


def off(found: Tensor, wanted: Tensor) -> float:
    """The error of a result, of its root mean square."""
    return float((found - wanted).float().norm() / wanted.float().norm())


@pytest.mark.parametrize("name", list(NAMED))
def test_it_stays_near_the_dense_model(name: str) -> None:
    known = family(name)
    module = compiled(known, PASS)
    assert of_kind(flat(module), LinearInt8.kind)
    inputs = arguments(known, known.entry.example(2, 9))
    wanted = known.forward(*inputs)
    for backend in ("reference", "cpu"):
        found = executable(known, module, backends=(backend,))(*inputs)
        assert off(found[0], wanted[0]) < 0.06, backend


@pytest.mark.parametrize("name", CAUSAL)
def test_a_step_computes_what_the_forward_does(name: str) -> None:
    known = family(name)
    whole, cut = compiled(known, PASS), compiled(known, f"incrementalize, {PASS}")
    forward, step = executable(known, whole), cut["step"].region
    steps = of_kind(flat(cut, "step"), LinearInt8.kind)
    assert len(steps) == len(of_kind(flat(whole), LinearInt8.kind))
    ids = next(iter(known.entry.example(1, 12).values()))
    valid, pos = torch.ones_like(ids).bool(), torch.arange(12)[None]
    given = {"ids": ids, "pos": pos, "kpos": pos, "rows": pos}
    inputs = [_input(p, given, step.params) for p in step.params]
    found = executable(known, cut, "step")(*inputs)[0]
    assert off(found, forward(ids, valid, pos)[0]) < 0.01


def _input(param: Value, given: dict[str, Tensor], params: tuple[Value, ...]) -> Any:
    from elidir.backends.reference import FunctionalKV

    if param.name in given:
        return given[param.name]
    if param.name == "mask":
        return torch.ones(1, 12, 12, dtype=torch.bool).tril()
    _, heads, _, keys, values = (d if isinstance(d, int) else 1 for d in param.type.dims)
    return FunctionalKV(torch.empty(1, heads, 0, keys), torch.empty(1, heads, 0, values))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_rows_do_not_see_each_other(name: str) -> None:
    known = family(name)
    run = executable(known, compiled(known, f"lossless, {PASS}"), backends=("cpu",))
    inputs = known.entry.example(3, 5)
    together = run(*arguments(known, inputs))[0]
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        valid = inputs["attention_mask"][row].bool()
        found = run(*arguments(known, alone))[0][0]
        torch.testing.assert_close(found[valid], together[row][valid], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("other", [n for n in passes() if n != "extract-outliers"])
@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_it_composes_with_every_pass_in_either_order(name: str, other: str) -> None:
    known = family(name)
    inputs = arguments(known, known.entry.example(2, 9))
    wanted = known.forward(*inputs)[0]
    steps = Stage.RAISED not in passes()[other]().stages
    for pipeline in (f"{other}, {PASS}", f"{PASS}, {other}"):
        pipeline = f"incrementalize, {pipeline}" if steps else pipeline
        module = compiled(known, pipeline)
        assert of_kind(flat(module), LinearInt8.kind)
        found = executable(known, module, backends=("cpu",))(*inputs)[0]
        assert off(found, wanted) < 0.06, pipeline


def test_more_channels_apart_are_nearer() -> None:
    known = family("llama")
    inputs = arguments(known, known.entry.example(2, 9))
    wanted = known.forward(*inputs)[0]
    errors = [
        off(
            executable(known, compiled(known, f"extract-outliers{{fraction={f}}}"))(*inputs)[0],
            wanted,
        )
        for f in (0, 0.5)
    ]
    assert errors[1] < errors[0]


def test_a_weight_without_numbers_is_refused_by_name() -> None:
    known = family("llama")
    tensors = {n: t.clone() for n, t in known.raised.tensors.items()}
    name = next(n for n, t in tensors.items() if n.endswith("down_proj"))
    tensors[name][0, 0] = float("nan")
    network = Network(known.module, WeightStore(tensors), known.raised.inputs)
    feeds = network.feeds([known.entry.example(1, 5)])
    with pytest.raises(CalibrationError, match=r"holds NaN or infinity; repair the model"):
        observe(network, feeds, (LINEAR_INPUTS,))
