"""`elidir.compile` in each of its forms, and what `Compiled` shows of itself."""

import json
from typing import Any

import pytest
import torch
from torch import nn

import elidir
from elidir.ir import ElidirError
from tests.zoo import NAMED

LLAMA = NAMED["llama"]


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    """A tiny model of transformers."""
    return LLAMA.factory()


@pytest.fixture(scope="module")
def fast(llama: nn.Module) -> elidir.Compiled:
    """The same, compiled."""
    return elidir.compile(llama)


class Doubler(nn.Module):
    """A module that needs example inputs."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, scale: float = 2.0) -> dict[str, torch.Tensor]:
        """Return a dict, to see that structure survives."""
        return {"out": self.linear(x) * scale}


# ---- forms


def test_call_gives_the_models_own_output(llama: nn.Module, fast: elidir.Compiled) -> None:
    inputs = LLAMA.example(2, 9)
    with torch.no_grad():
        wanted = llama(**inputs)
    found = fast(**inputs)
    assert type(found) is type(wanted)
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(found.logits[valid], wanted.logits[valid], atol=1e-5, rtol=0)


def test_positions_left_out_are_the_models_own(llama: nn.Module, fast: elidir.Compiled) -> None:
    inputs = {k: v for k, v in LLAMA.example(2, 9).items() if k != "position_ids"}
    with torch.no_grad():
        wanted = llama(**inputs).logits
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(fast(**inputs).logits[valid], wanted[valid], atol=1e-5, rtol=0)


def test_generate_equals_transformers(llama: nn.Module, fast: elidir.Compiled) -> None:
    inputs = LLAMA.example(3, 7)
    given = {"attention_mask": inputs["attention_mask"], "max_new_tokens": 12, "do_sample": False}
    wanted = llama.generate(inputs["input_ids"], **given)
    assert torch.equal(fast.generate(inputs["input_ids"], **given), wanted)


def test_generate_of_a_program_of_fixed_sizes_equals_transformers(llama: nn.Module) -> None:
    fixed = elidir.compile(llama, static=(1, 20))
    ids = LLAMA.example(1, 7)["input_ids"]
    given = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(fixed.generate(ids, **given), llama.generate(ids, **given))


def test_the_model_is_given_back_as_it_was() -> None:
    model = LLAMA.factory().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = model.config.to_dict()
    elidir.compile(model)
    assert model.training
    assert model.config.to_dict() == config
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_module_is_captured_at_its_first_call() -> None:
    model = Doubler().eval()
    lazy = elidir.compile(model)
    assert "not captured yet" in repr(lazy)
    with pytest.raises(ElidirError, match="example_inputs="):
        _ = lazy.ir
    x = torch.randn(3, 4)
    torch.testing.assert_close(lazy(x)["out"], model(x)["out"])
    y = torch.randn(7, 4)
    torch.testing.assert_close(lazy(x=y)["out"], model(y)["out"])


def test_decorator_on_a_class_makes_compiled_instances() -> None:
    made = elidir.compile(Doubler)(width=6)
    assert isinstance(made, elidir.Compiled)
    assert made(torch.randn(2, 6))["out"].shape == (2, 6)
    ready = elidir.compile(Doubler, example_inputs=(torch.randn(3, 6),))(width=6)
    assert "func @forward" in ready.ir


def test_dynamic_none_is_automatic_as_in_torch() -> None:
    made = elidir.compile(Doubler(), dynamic=None, example_inputs=(torch.randn(3, 4),))
    assert made(torch.randn(7, 4))["out"].shape == (7, 4)


def test_a_function_without_a_signature_is_refused() -> None:
    with pytest.raises(ElidirError, match="compile a function that calls it"):
        elidir.compile(torch.relu)(torch.randn(2, 3))


def test_decorator_with_and_without_arguments_on_a_function() -> None:
    @elidir.compile
    def bare(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + 1

    @elidir.compile(target="p40", backend="reference")
    def told(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + 1

    x = torch.randn(3, 5)
    assert torch.equal(bare(x), torch.relu(x) + 1)
    assert torch.equal(told(x), bare(x))


def test_disable_gives_the_model_back() -> None:
    model = Doubler()
    assert elidir.compile(model, disable=True) is model


# ---- looking


def test_it_says_what_it_did(fast: elidir.Compiled) -> None:
    text = fast.explain()
    assert "2 layers of 1 body" in text
    assert "incrementalize" in text
    assert "func @step" in fast.ir
    assert fast.history[0][0] == "input"
    assert fast.stats["seconds"]["capture"] > 0
    assert fast.stats["stored_bytes"] > 0


def test_it_counts_what_generation_did(fast: elidir.Compiled) -> None:
    fast.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, min_new_tokens=4)
    found = fast.stats["generation"]
    assert (found["tokens"], found["steps"]) == (6, 4)  # the last new token is not fed
    assert found["layer_tokens"] == [6, 6]
    assert found["layers_per_token"] == 2
    assert found["kv_bytes"] > 0


def test_report_covers_each_target(fast: elidir.Compiled) -> None:
    found = fast.report(["p40", "a100", "m2", "npu"], prompt=64, new=16)
    assert len(json.loads(found.to_json())["targets"]) == 4
    assert "P40" in found.to_text()
    with pytest.raises(ElidirError, match="did you mean 'prompt'"):
        fast.report(promt=3)


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pipeline": "lossles"}, "did you mean 'lossless'"),
        ({"pipeline": "canonicalize{deep=true}"}, "canonicalize"),
        ({"target": "p4o"}, "did you mean 'p40'"),
        ({"backend": "cpuu"}, "did you mean 'cpu'"),
        ({"dtype": "int7"}, "no float type"),
        ({"pipeline": 3}, "3 is no pipeline"),
        ({"pipeline": "prune-tokens, incrementalize"}, "write: incrementalize, prune-tokens"),
        ({"pipeline": "prune-tokens{keep=1.5}"}, r"is 1.5, which is not in \[0.01, 1\]"),
        ({"pipeline": "prune-tokens{keep=most}"}, "is 'most', which is none of these; give keep"),
        ({"pipeline": "balanced"}, "recorded on data; give calibration="),
        ({"target": None}, "None is no target"),
        ({"backend": []}, "give one of cpu, reference"),
        ({"static": 3}, "no batch and length"),
        ({"static": (1, 0)}, "must be at least 1"),
    ],
)
def test_a_wrong_option_is_said_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ElidirError, match=words):
        elidir.compile(Doubler(), **options)


def test_inputs_that_were_not_captured_are_named(fast: elidir.Compiled) -> None:
    with pytest.raises(ElidirError, match="inputs_embeds"):
        fast(inputs_embeds=torch.zeros(1, 3, 32))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), "empty"),
        (torch.tensor([[5, 1000]]), "1000"),
        (torch.full((1, 4000), 7), "positions"),
    ],
)
def test_bad_prompts(fast: elidir.Compiled, ids: torch.Tensor, words: str) -> None:
    with pytest.raises(ElidirError, match=words):
        fast.generate(ids, max_new_tokens=2)


def test_only_a_module_class_can_be_compiled() -> None:
    with pytest.raises(ElidirError, match="give a subclass"):
        elidir.compile(dict)


def test_an_argument_that_compile_has_not_is_named_with_the_nearest() -> None:
    with pytest.raises(ElidirError, match=r"no argument 'calibrate'; did you mean 'calibration'"):
        elidir.compile(Doubler(), calibrate="text")
    with pytest.raises(ElidirError, match=r"no argument 'passes'; known: backend, calibration, "):
        elidir.compile(passes="cse")
