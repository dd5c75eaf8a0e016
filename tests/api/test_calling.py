"""Calls of a compiled model: what its arguments may be, and what comes back, for any module.

Outputs keep their structure with constants in it, values that are no tensors are those of the
capture, positions that are left out are the model's own, and generation reads the scores wherever
they stand.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import elidir
from elidir.frontends import CaptureError
from elidir.ir import ElidirError
from tests.zoo import BERT_LIKE, NAMED, OTHERS, exact, left_padding, masked_inputs, tokens


class Outputs(nn.Module):
    """A decoder that returns states, scores, a constant and nothing, scores not first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = NAMED["plain_triangle"].factory()

    def forward(self, ids: Tensor) -> tuple[Any, ...]:
        """Return a nested output."""
        scores = self.inner(ids)
        return scores[..., :7] * 2, {"scores": scores, "loss": None}, 3


class Options(nn.Module):
    """A module with nested inputs, any number of them, and options that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, pair: tuple[Any, ...], *more: Tensor, scale: float = 1.0) -> Tensor:
        """Combine all."""
        first, (second, third) = pair
        return (self.linear(first) + second * third + sum(more)) * scale


def rows(seed: int, batch: int = 2, length: int = 5) -> Tensor:
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(seed))


NESTED = ((rows(0), (rows(1), rows(2))), rows(3), rows(4))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A module with options."""
    torch.manual_seed(0)
    return Options()


@pytest.fixture(scope="module")
def fast(model: nn.Module) -> elidir.Compiled:
    """The same, compiled."""
    return elidir.compile(model, example_inputs=NESTED)


def test_outputs_keep_their_structure() -> None:
    model = Outputs()
    fast = elidir.compile(model, example_inputs=(tokens(3, 7),))
    states, named, number = fast(tokens(2, 9))
    wanted = model(tokens(2, 9))
    assert (named["loss"], number) == (None, 3)
    torch.testing.assert_close(states, wanted[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(named["scores"], wanted[1]["scores"], rtol=0, atol=1e-5)


def test_generation_reads_the_scores_wherever_they_stand() -> None:
    model = Outputs()
    fast = elidir.compile(model, example_inputs=(tokens(3, 7),))
    wanted = tokens(1, 6)
    for _ in range(8):
        best = model(wanted)[1]["scores"][:, -1].argmax(-1)
        wanted = torch.cat([wanted, best[:, None]], dim=1)
    assert "step" in fast.program.module.functions
    assert torch.equal(fast.generate(tokens(1, 6), max_new_tokens=8), wanted)


def test_nested_inputs_by_position_and_by_name(model: nn.Module, fast: elidir.Compiled) -> None:
    other = (rows(5, 3, 9), (rows(6, 3, 9), rows(7, 3, 9)))
    wanted = model(other, rows(8, 3, 9), rows(9, 3, 9))
    found = fast(other, rows(8, 3, 9), rows(9, 3, 9))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    lazily = elidir.compile(model)(other, rows(8, 3, 9), rows(9, 3, 9), scale=1.0)
    torch.testing.assert_close(lazily, wanted, rtol=0, atol=1e-5)


def test_a_constant_is_the_one_of_the_capture(model: nn.Module, fast: elidir.Compiled) -> None:
    with pytest.raises(ElidirError, match=r"compiled with scale=1.0, .*leave scale=2.0 out"):
        fast(*NESTED, scale=2.0)
    doubled = elidir.compile(model)
    wanted = model(*NESTED, scale=2.0)
    torch.testing.assert_close(doubled(*NESTED, scale=2.0), wanted, rtol=0, atol=1e-5)
    with pytest.raises(ElidirError, match=r"compiled with scale=2.0, not with its default"):
        doubled(*NESTED)


FIRST, REST = NESTED[0], NESTED[1:]
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("left out", (FIRST, REST[0]), {}, "needs the input 'more.1'"),
    ("one more", (*NESTED, rows(5)), {}, "compiled without the input 'more.2'"),
    ("twice", NESTED, {"pair": FIRST}, "pair is given twice"),
    ("a number", ((rows(0), (3, rows(2))), *REST), {}, "pair.1.0.* must be a tensor"),
    ("sizes", ((rows(0), (rows(1, 2, 3), rows(2))), *REST), {}, "expected 5 for T"),
    ("dtype", ((rows(0).double(), FIRST[1]), *REST), {}, "convert it with"),
    ("unknown", NESTED, {"scales": rows(0)}, "without the input 'scales'"),
]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS]
)
def test_a_call_that_does_not_fit(
    fast: elidir.Compiled, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ElidirError, match=message):
        fast(*args, **kwargs)


LLAMA_CALLS: list[tuple[dict[str, Any], str]] = [
    ({}, "needs the input 'input_ids'"),
    ({"input_ids": [[1, 2]]}, "input_ids must be a tensor"),
    ({"input_ids": torch.tensor([1, 2])}, r"are \[rows, tokens\], not \[2\]"),
    ({"input_ids": tokens(1, 3), "output_hidden_states": True}, "'output_hidden_states'"),
    ({"input_ids": tokens(1, 3), "return_dict": False}, "compiled with return_dict=True"),
    ({"input_ids": tokens(1, 3), "logits_to_keep": 1}, "compiled with logits_to_keep=0"),
    ({"input_ids": tokens(1, 3), "attention_mask": torch.ones(1, 2)}, "expected 3 for T"),
]


@pytest.mark.parametrize(("inputs", "message"), LLAMA_CALLS, ids=[c[1] for c in LLAMA_CALLS])
def test_a_call_of_transformers_that_does_not_fit(inputs: dict[str, Any], message: str) -> None:
    llama = _compiled("llama")
    with pytest.raises(ElidirError, match=message):
        llama(**inputs)
    llama(tokens(1, 3), use_cache=True, output_attentions=False)  # these ask for nothing more


_MADE: dict[str, elidir.Compiled] = {}


def _compiled(name: str) -> elidir.Compiled:
    if name not in _MADE:
        _MADE[name] = elidir.compile((NAMED | OTHERS)[name].factory())
    return _MADE[name]


# ---- what the model does by itself


@pytest.mark.parametrize("padding", [0, 1])
def test_positions_counted_after_the_padding(padding: int) -> None:
    options = {"is_decoder": True, "pad_token_id": padding, "max_position_embeddings": 130}
    model = exact("roberta", BERT_LIKE | options, example=masked_inputs).factory()
    fast = elidir.compile(model)
    mask = left_padding(3, 9)
    inputs = {"input_ids": tokens(3, 9) * mask + padding * (1 - mask), "attention_mask": mask}
    with torch.no_grad():
        wanted = model(**inputs, use_cache=False).logits
    found = fast(**inputs).logits
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "vit", "dummies"])
def test_a_model_that_cannot_generate_says_so(name: str) -> None:
    model = NAMED["gpt2" if name == "dummies" else name].factory()
    if name == "dummies":  # as XLNet and XLM do
        model.prepare_inputs_for_generation = lambda ids, **_: {"input_ids": ids.repeat(1, 2)}
    fast = elidir.compile(model)
    with pytest.raises(ElidirError, match=r"cannot generate: .*; call it"):
        fast.generate(tokens(1, 3))


# ---- what cannot be compiled


def test_weights_without_data_are_said_at_once() -> None:
    with pytest.raises(CaptureError, match=r"no data for .* on the meta device"):
        elidir.compile(NAMED["llama"].factory().to("meta"))


def test_a_compiled_model_is_not_compiled_again(fast: elidir.Compiled) -> None:
    with pytest.raises(ElidirError, match="compiled already"):
        elidir.compile(fast)


def test_a_model_that_fails_by_itself_is_not_blamed_on_export() -> None:
    model = NAMED["llama"].factory()
    model.model.norm.forward = lambda x: x @ torch.ones(3, 3)
    with pytest.raises(CaptureError, match=r"does not run on what .*give example_inputs="):
        elidir.compile(model)


@pytest.mark.parametrize("output", ["hello", None])
def test_a_function_that_returns_no_tensor(output: Any) -> None:
    with pytest.raises(CaptureError, match="returns no tensor"):
        elidir.compile(lambda x: output, example_inputs=(rows(0),))


def test_a_size_is_no_output() -> None:
    with pytest.raises(CaptureError, match="output 1 of the model is a size"):
        elidir.compile(lambda x: (x * 2, x.shape[1]), example_inputs=(rows(0),))
