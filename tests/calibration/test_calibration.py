"""Calibration: what is recorded, files and where they come from, and data that cannot be used."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import elidir
from elidir.frontends import (
    CalibrationError,
    Network,
    Observations,
    calibrate,
    fingerprint,
    read_observations,
    write_observations,
)
from elidir.ir import ElidirError
from elidir.passes import LINEAR_INPUTS, PipelineError
from tests.zoo import LLAMA_LIKE, randomize

PIPELINE = "lossless, extract-outliers{fraction=0.2 clip=1 force=true}"
IDS = torch.randint(4, 100, (3, 20), generator=torch.Generator().manual_seed(0))


def a_model(seed: int = 0) -> torch.nn.Module:
    """Return a tiny Llama."""
    config = AutoConfig.for_model("llama", **LLAMA_LIKE)
    return randomize(AutoModelForCausalLM.from_config(config), seed)


def network(seed: int = 0) -> Network:
    """Return its network."""
    program = elidir.compile(a_model(seed)).program
    return Network(program.raised, program.store, program.face.inputs)


@pytest.fixture(scope="module")
def known() -> Network:
    return network()


@pytest.fixture(scope="module")
def made(known: Network) -> Observations:
    return calibrate(known, IDS)


def test_what_is_recorded_is_what_went_in(known: Network, made: Observations) -> None:
    model = a_model()
    seen: list[torch.Tensor] = []
    layer = model.model.layers[1].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for row in IDS:
            model(row[None])
    hook.remove()
    (name,) = [n for n in made.found[LINEAR_INPUTS] if n.startswith("layers.1") and "down" in n]
    found = made.found[LINEAR_INPUTS][name]
    peaks = torch.stack([x.abs().amax(0) for x in seen])
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found.reach, peaks.amax(0), **close)
    np.testing.assert_allclose(found.power, torch.cat(seen).square().mean(0), **close)
    np.testing.assert_allclose(found.weight_power, layer.weight.detach().square().sum(0), **close)
    outputs = [layer(x).detach().square().sum(-1).median().item() for x in seen]
    assert found.output_power == pytest.approx(np.mean(outputs), rel=1e-4)
    assert 0 < found.share <= 1
    source = made.provenance
    assert (source.source, source.tokens, source.elidir) == ("token ids", 60, elidir.__version__)
    age = datetime.now(UTC) - datetime.fromisoformat(source.recorded)
    assert 0 <= age.total_seconds() < 600


def test_observations_come_back_from_their_file(made: Observations, tmp_path: Path) -> None:
    path = tmp_path / "seen.safetensors"
    write_observations(made, path)
    back = read_observations(path)
    assert back.provenance == made.provenance
    for name, found in made.found[LINEAR_INPUTS].items():
        for field, value in vars(found).items():
            np.testing.assert_array_equal(getattr(back.found[LINEAR_INPUTS][name], field), value)
    assert [p.name for p in tmp_path.iterdir()] == ["seen.safetensors"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # others may read it as any file


def test_another_network_is_refused(made: Observations, tmp_path: Path) -> None:
    path = tmp_path / "seen.safetensors"
    write_observations(made, path)
    with pytest.raises(CalibrationError, match="recorded on another network; calibrate this one"):
        elidir.compile(a_model(1), pipeline=PIPELINE, calibration=path)


def test_compiling_with_data_and_with_their_file_is_the_same(
    made: Observations, tmp_path: Path
) -> None:
    path = tmp_path / "seen.safetensors"
    write_observations(made, path)
    model = a_model()
    first = elidir.compile(model, pipeline=PIPELINE, calibration=IDS)
    second = elidir.compile(model, pipeline=PIPELINE, calibration=path)
    assert torch.equal(first(IDS).logits, second(IDS).logits)
    assert str(first.program.module) == str(second.program.module)
    assert "calibrated on token ids, 60 tokens (hash " in first.explain()
    assert second.program.calibration == made.provenance
    wanted = model(IDS).logits.detach()
    assert float((first(IDS).logits - wanted).norm() / wanted.norm()) < 0.05


def test_a_compiled_model_generates_from_its_cache() -> None:
    model = a_model()
    fast = elidir.compile(model, pipeline=PIPELINE, calibration=IDS)
    made = fast.generate(IDS[:1, :8], max_new_tokens=6)
    ids = IDS[:1, :8]
    for _ in range(6):
        ids = torch.cat([ids, fast(ids).logits[:, -1].argmax(-1, keepdim=True)], -1)
    assert torch.equal(made, ids)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "is empty"),
        ([], "there is no text"),
        ("some text", "has no tokenizer"),
        ([[1, 2], ["a"]], "a list of token ids"),
        (3, "a text is a string, a path or a list of token ids"),
        ([{"input_idz": IDS}], "lacks the input 'input_ids'"),
        ([{"input_ids": None}], "'input_ids' of a call .* is no tensor"),
        (torch.full((2, 20), 999), r"token id 999 .* out of range: ids are from 0 to \d+; use"),
        ([{"input_ids": -IDS}], "token id -"),
    ],
)
def test_data_that_cannot_be_used(known: Network, data: Any, says: str) -> None:
    with pytest.raises(ElidirError, match=says):
        calibrate(known, data)


def test_too_short_a_text_says_how_long_a_window_is(known: Network) -> None:
    with pytest.raises(ElidirError, match="shorter than a window: 3 tokens, and a window has 128"):
        calibrate(known, [1, 2, 3])


def test_a_text_in_another_encoding_is_named(known: Network, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("caf\xe9 ".encode("latin-1") * 50)
    with pytest.raises(ElidirError, match="is not UTF-8 text"):
        calibrate(known, path)


def test_a_file_that_holds_no_observations(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(CalibrationError, match="make them by `elidir calibrate`"):
        read_observations(path)


def test_a_model_without_tokenizer_is_told_what_to_give() -> None:
    with pytest.raises(CalibrationError, match=r"needs linear-inputs.*give calibration= token ids"):
        elidir.compile(a_model(), pipeline=PIPELINE)


@pytest.mark.parametrize("fraction", ["-0.1", "1.5", "some"])
def test_a_fraction_outside_of_0_to_1_is_refused(fraction: str) -> None:
    says = (
        r"option 'fraction' of pass 'extract-outliers' is .*, which is not (a number|in \[0, 1\]);"
    )
    with pytest.raises(PipelineError, match=says):
        elidir.compile(a_model(), pipeline=f"extract-outliers{{fraction={fraction}}}")


def test_a_neutral_pipeline_needs_no_data() -> None:
    fast = elidir.compile(a_model(), pipeline="lossless, extract-outliers{fraction=none}")
    plain = elidir.compile(a_model())
    assert str(fast.program.module) == str(plain.program.module)


def test_the_hash_of_data_tells_them_apart(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some text")
    prints = [fingerprint(d) for d in ("a", ["a", "b"], ["ab"], IDS, [{"x": IDS}], path)]
    assert len(set(prints)) == len(prints)
    path.write_text("other text")
    assert fingerprint(path) not in prints
