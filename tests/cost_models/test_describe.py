"""Descriptions: published parameter counts, and errors that name the field."""

import dataclasses
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from elidir.cost_models import (
    Description,
    DescriptionError,
    Request,
    describe,
    descriptions,
    lines,
    load_description,
    parameters,
    prefill,
    weight_bytes,
)
from elidir.cost_models.work import Precision
from elidir.ir import format_module, parse_module, verify


@pytest.mark.parametrize(
    ("name", "published"),
    [("smollm2-135m", 134_515_008), ("llama-3-8b", 8_030_261_248), ("llama-3-70b", 70_553_706_496)],
)
def test_parameters_are_those_published(name: str, published: int) -> None:
    module = describe(name)
    frequencies = load_description(name).head_dim // 2  # a table, not a parameter
    assert parameters(module, module["step"]) == published + frequencies


def test_modules_are_valid_and_round_trip() -> None:
    for name in descriptions():
        module = describe(name)
        verify(module)
    text = format_module(module)
    assert format_module(parse_module(text)) == text


def test_layers_share_one_body(tiny: Description) -> None:
    module = describe(tiny)
    assert len(module.bodies) == 1
    assert len(list(module.layers())) == 2


def test_work_is_two_flops_a_parameter_and_attention(tiny: Description) -> None:
    """2 * matrix parameters * tokens, the head for one row, and 4 * hidden * pairs a layer."""
    module, d = describe(tiny), tiny
    tokens = 100
    phase = prefill(module, Request(batch=3, prompt=tokens))
    found = sum(
        n
        for line in lines(module, phase.function, Precision())
        for w in line.works
        for a, n in (w.evaluate(phase.bindings) * line.count).flops.items()
        if a.unit == "matrix"
    )
    heads = (d.heads + 2 * d.kv_heads) * d.head_dim * d.hidden + d.heads * d.head_dim * d.hidden
    layer = heads + 3 * d.hidden * d.ffn
    attention = 4 * d.heads * d.head_dim * tokens * tokens
    head = 2 * d.hidden * d.vocab
    assert found == 3 * (d.layers * (2 * layer * tokens + attention) + head)


def test_a_tied_head_takes_no_memory(tiny: Description) -> None:
    tied = describe(dataclasses.replace(tiny, tied_head=True))
    apart = describe(tiny)
    sizes = [weight_bytes(m, m["step"], Precision()) for m in (apart, tied)]
    assert sizes[0] - sizes[1] == 256 * 64 * 4


def test_storage_format_is_that_of_matrices(tiny: Description) -> None:
    module = describe(dataclasses.replace(tiny, format="q4_1", tied_head=True))
    matrices = 256 * 64 + 2 * (64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 128)
    vectors = 5 * 64 * 4 + 8 * 4
    assert weight_bytes(module, module["step"], Precision()) == matrices * 5 // 8 + vectors


@pytest.mark.parametrize("change", [{"positions": "learned"}, {"positions": "none"}])
def test_plainer_decoders(tiny: Description, change: dict[str, str]) -> None:
    plain = {"norm": "layer", "gated": False, "activation": "gelu", "bias": True, **change}
    module = describe(dataclasses.replace(tiny, **plain))  # type: ignore[arg-type]
    kinds = {op.kind for op in module.ops()}
    assert {"norm.layer", "unary", "linear"} <= kinds
    assert not {"rope", "ffn.gated"} & kinds


@pytest.mark.parametrize(
    ("field", "item", "said"),
    [
        ("hidden", None, "the field 'hidden' is missing; add it"),
        ("hiden", 64, "unknown field 'hiden'; did you mean 'hidden'?"),
        ("hidden", "64", "'hidden' is '64'; it must be a whole number"),
        ("layers", 0, "'layers' is 0; it must be at least 1"),
        ("kv_heads", 3, "'kv_heads' is 3, which does not divide 4 heads"),
        ("norm", "rmsnorm", "'norm' is 'rmsnorm'; did you mean 'rms'?"),
        ("dtype", "fp16", "'dtype' is 'fp16'; did you mean 'f16'?"),
        ("format", "q4_k_m", "'format' is 'q4_k_m'; did you mean 'q4_k'?"),
        ("gated", "yes", "'gated' is 'yes'; it must be true or false"),
    ],
)
def test_wrong_file_is_refused(
    tiny: Description, field: str, item: object, said: str, tmp_path: Path
) -> None:
    data = dataclasses.asdict(tiny)
    if item is None:
        del data[field]
    else:
        data[field] = item
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(DescriptionError) as error:
        load_description(file)
    assert said in str(error.value)
    assert str(error.value).startswith(str(file))


def test_unknown_name() -> None:
    with pytest.raises(DescriptionError, match="unknown description 'llama-3-7b'; did you mean"):
        describe("llama-3-7b")


def test_llama_70b_is_reported_in_two_seconds_with_imports() -> None:
    code = (
        "from elidir.cost_models import report;"
        "print(report('llama-3-70b', ['p40', 'a100', 'm2', 'npu']).to_text()[:11])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert out.stdout.decode().strip() == "llama-3-70b"
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert busy < 2.0  # seconds of one core, since other tests run beside this one
