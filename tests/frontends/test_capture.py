"""Capturing: the graph equals the model at other sizes, and the model is given back untouched.

Every named family is captured once for this file. What raising makes of a graph is tested
elsewhere.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from elidir.frontends.capture import Capture, Origin, capture
from elidir.frontends.signature import CaptureError, Role
from tests.zoo import BERT_LIKE, NAMED, Entry, Inputs, decoder, exact, plain_inputs

FIRST = (2, 6)
SIZES = [(1, 1), (3, 11)]


@dataclass(frozen=True, eq=False)
class Captured:
    """A model beside its capture, and what it was like before."""

    entry: Entry
    model: nn.Module
    graph: Capture
    before: dict[str, Any]


def portrait(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that capture could disturb."""
    every = list(model.named_modules())
    return {
        "weights": {k: (id(v), v._version) for k, v in model.state_dict(keep_vars=True).items()},
        "grad": {k: v.requires_grad for k, v in model.named_parameters()},
        "buffers": {k: id(v) for k, v in model.named_buffers()},
        "training": {k: m.training for k, m in every},
        "fields": {k: sorted(vars(m)) for k, m in every},
        "hooks": {k: list(m._forward_hooks) for k, m in every},
        "config": _config(model),
    }


def _config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return config and {k: repr(v) for k, v in vars(config).items()}


@functools.cache
def captured(name: str) -> Captured:
    """Capture a family in training mode, to see that the mode is kept."""
    entry = NAMED[name]
    model = entry.factory().train()
    before = portrait(model)
    example = entry.example(*FIRST) if entry.needs_example else None
    return Captured(entry, model, capture(model, example), before)


def of(known: Captured, batch: int, length: int) -> Inputs:
    """Inputs of a family, those that its capture takes."""
    names = {i.name for i in known.graph.inputs}
    return {k: v for k, v in known.entry.example(batch, length).items() if k in names}


def run(graph: Capture, inputs: Inputs) -> list[Any]:
    """The flat outputs of a captured graph."""
    bound = {name: source.tensor for name, source in graph.weights.items()}
    bound |= {i.placeholder: inputs[i.name] for i in graph.inputs}
    placeholders = graph.graph.graph.find_nodes(op="placeholder")
    with torch.no_grad():
        return list(graph.graph(*(bound[node.name] for node in placeholders)))


def rebuild(graph: Capture, flat: list[Any]) -> Any:
    """The model's own kind of output."""
    leaves = dict(graph.fixed) | dict(zip(graph.places, flat, strict=True))
    return pytree.tree_unflatten([leaves[i] for i in range(len(leaves))], graph.out_spec)


def eager(model: nn.Module, inputs: Inputs) -> Any:
    """The model's own answer, without a cache."""
    takes = inspect.signature(model.forward).parameters
    options = {"use_cache": False} if "use_cache" in takes else {}
    with torch.no_grad():
        return model(**inputs, **options)


def at_valid(tensor: Tensor, inputs: Inputs) -> Tensor:
    """The part of an output that padding does not decide."""
    mask = inputs.get("attention_mask")
    if mask is None or tensor.shape[:2] != mask.shape:
        return tensor
    return tensor[mask.bool()]


@pytest.mark.parametrize("name", NAMED)
def test_graph_equals_model_at_other_sizes(name: str) -> None:
    known = captured(name)
    known.model.eval()
    for batch, length in SIZES:
        inputs = of(known, batch, length)
        wanted, got = eager(known.model, inputs), rebuild(known.graph, run(known.graph, inputs))
        assert type(got) is type(wanted)
        pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(
                at_valid(mine, inputs), at_valid(theirs, inputs), rtol=0, atol=2e-6
            )


@pytest.mark.parametrize("name", NAMED)
def test_model_is_as_it_was(name: str) -> None:
    known = captured(name)
    known.model.train()
    assert portrait(known.model) == known.before


@pytest.mark.parametrize("name", NAMED)
def test_graph_is_flat_and_functional(name: str) -> None:
    graph = captured(name).graph
    for node in graph.graph.graph.nodes:
        assert node.op in ("placeholder", "call_function", "output")
        assert "path" in node.meta
        schema = getattr(node.target, "_schema", None)
        assert schema is None or not schema.is_mutable
        assert node.op != "call_function" or "_assert" not in str(node.target)
    names = {node.name for node in graph.graph.graph.find_nodes(op="placeholder")}
    assert names == set(graph.weights) | {i.placeholder for i in graph.inputs}


@pytest.mark.parametrize("name", NAMED)
def test_weights_are_the_models_own(name: str) -> None:
    known = captured(name)
    parameters = dict(known.model.named_parameters(remove_duplicate=False))
    for source in known.graph.weights.values():
        if source.origin is Origin.PARAMETER:
            assert source.tensor is parameters[source.name]


@pytest.mark.parametrize("name", NAMED)
def test_inputs_and_symbols_say_what_varies(name: str) -> None:
    known = captured(name)
    images = name == "vit"
    assert {s.name for s in known.graph.symbols.values()} == ({"B"} if images else {"B", "T"})
    first = known.graph.inputs[0]
    assert first.role is (Role.PIXELS if images else Role.IDS)
    assert first.dims == (("B", 3, 16, 16) if images else ("B", "T"))
    assert known.graph.scores == (name != "bert")
    assert not known.graph.remarks


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "plain_triangle", "plain_fused"])
def test_length_is_bounded_by_the_models_positions(name: str) -> None:
    (length,) = [s for s in captured(name).graph.symbols.values() if s.name == "T"]
    assert (length.lo, length.hi) == (1, 128)


def test_tied_weights_are_one_tensor() -> None:
    known = captured("gemma")
    tied = [w for w in known.graph.weights.values() if w.tensor is known.model.lm_head.weight]
    assert tied
    assert all(w.tensor is known.model.model.embed_tokens.weight for w in tied)


def test_paths_name_the_module_that_made_a_node() -> None:
    graph = captured("llama").graph.graph.graph
    linears = graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    paths = [node.meta["path"] for node in linears]
    assert paths[0] == "model.layers.0.self_attn.q_proj"
    assert paths[-1] == "lm_head"


# modules and functions of any kind


class Writes(nn.Module):
    """Writes in place, through a view, and in regions without gradients and autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, None, int]:
        y = self.linear(x)
        y[:, 0] = 0
        y.mul_(2)
        with torch.enable_grad():
            z = self.linear(y)
        with torch.autocast("cpu", enabled=False):
            z = self.linear(z)
        return z, y, None, 3


class Loops(nn.Module):
    """Steps over the length in Python, as a recurrence does."""

    def forward(self, ids: Tensor) -> Tensor:
        total = torch.zeros_like(ids[:, 0])
        for step in range(ids.shape[1]):
            total = total + ids[:, step]
        return total


class Branches(nn.Module):
    """Decides by what a tensor holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_writes_become_values() -> None:
    model = Writes()
    graph = capture(model, (torch.randn(2, 5, 4),))
    x = torch.randn(3, 9, 4)
    got, wanted = rebuild(graph, run(graph, {"x": x})), model(x)
    assert got[2:] == wanted[2:]
    assert all(torch.equal(a, b) for a, b in zip(got[:2], wanted[:2], strict=True))
    assert not [n for n in graph.graph.graph.nodes if "wrap_with" in str(n.target)]


class Counts(nn.Module):
    """Keeps a count of its calls in a buffer, and writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x.mul_(2) + self.calls


def test_what_a_model_keeps_between_calls_is_left_out() -> None:
    model = Counts()
    example = torch.ones(2, 5, 4)
    graph = capture(model, (example,))
    x = torch.ones(3, 4, 4)
    for _ in range(2):
        assert torch.equal(rebuild(graph, run(graph, {"x": x})), torch.full_like(x, 3))
    assert torch.equal(x, torch.ones(3, 4, 4))
    assert torch.equal(example, torch.ones(2, 5, 4))
    assert model.calls == 0


class Converts(nn.Module):
    """Turns a part of itself into another dtype while it runs, as routers of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 4, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        self.router = self.router.to(torch.float32)
        return self.router(x)


def test_a_model_may_convert_a_part_of_itself() -> None:
    model = Converts()
    x = torch.randn(3, 4)
    before = portrait(model)
    graph = capture(model, (torch.randn(2, 4),))
    assert portrait(model) == before
    assert model.router.weight.dtype == torch.bfloat16
    assert torch.equal(rebuild(graph, run(graph, {"x": x})), model(x))


def test_a_model_of_transformers_is_fed_what_it_takes() -> None:
    inputs = capture(exact("fnet", BERT_LIKE, auto="AutoModel").factory()).inputs
    assert [i.name for i in inputs] == ["input_ids"]


def test_examples_of_size_one_stay_dynamic() -> None:
    graph = capture(lambda ids: ids * 2, (torch.ones(1, 1, dtype=torch.long),))
    assert {s.name for s in graph.symbols.values()} == {"B", "T"}
    ids = torch.arange(15).reshape(3, 5)
    assert torch.equal(rebuild(graph, run(graph, {"ids": ids})), ids * 2)


def test_a_loop_over_the_length_is_captured_at_the_examples_length() -> None:
    graph = capture(Loops(), {"ids": torch.ones(2, 7, dtype=torch.long)})
    assert [s.name for s in graph.symbols.values()] == ["B"]
    assert graph.inputs[0].dims == ("B", 7)
    assert "T fixed" in graph.remarks[0]
    assert "test_capture.py" in graph.remarks[0]


class Asks(nn.Module):
    """Treats one length unlike all others."""

    def forward(self, ids: Tensor) -> Tensor:
        return ids if ids.shape[1] == 9 else -ids


def test_a_length_that_the_model_asks_for_is_not_assumed_away() -> None:
    graph = capture(Asks(), (torch.ones(2, 7, dtype=torch.long),))
    assert graph.inputs[0].dims == ("B", 7)
    assert "asks if T != 9" in graph.remarks[0]


def test_static_example_has_no_symbols() -> None:
    graph = capture(Loops(), {"ids": torch.ones(2, 7, dtype=torch.long)}, dynamic=False)
    assert not graph.symbols
    assert graph.inputs[0].dims == (2, 7)


# refusals


@pytest.fixture(scope="module")
def mamba() -> nn.Module:
    options = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 8}
    return exact("mamba", options, example=plain_inputs).factory()


def test_a_recurrence_is_refused_with_the_place_and_the_remedy(mamba: nn.Module) -> None:
    with pytest.raises(CaptureError, match=r"modeling_mamba\.py:\d+ in .*static=\(1, 128\)"):
        capture(mamba)


def test_a_recurrence_is_captured_at_a_stated_length(mamba: nn.Module) -> None:
    graph = capture(mamba, static=(2, 5))
    inputs = plain_inputs(2, 5) | {"attention_mask": torch.ones(2, 5, dtype=torch.long)}
    wanted = eager(mamba, plain_inputs(2, 5)).logits
    torch.testing.assert_close(run(graph, inputs)[0], wanted, rtol=0, atol=1e-5)


def test_a_failure_leaves_the_model_untouched(mamba: nn.Module) -> None:
    mamba.train()
    handle = mamba.register_forward_hook(lambda *_: None)
    before = portrait(mamba)
    with pytest.raises(CaptureError):
        capture(mamba)
    assert portrait(mamba) == before
    handle.remove()


def test_the_callers_implementations_are_kept() -> None:
    model = decoder("mixtral", num_local_experts=2, num_hidden_layers=1).factory()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("grouped_mm")
    capture(model)
    assert model.config._attn_implementation == "eager"
    assert model.config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give example_inputs="),
        ({"example_inputs": (1, 2, 3)}, "do not fit the model's forward"),
        ({"example_inputs": (1,)}, "hold no tensor"),
        ({"example_inputs": (torch.ones(2, 3),), "static": (1, 2)}, "models of transformers alone"),
        ({"example_inputs": (torch.ones(2, 3),)}, r"cannot be exported.*test_capture\.py:\d+ in"),
    ],
)
def test_bad_input_is_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(Branches(), **arguments)
    assert "\n" not in str(caught.value)


def test_data_that_decide_are_no_matter_of_sizes() -> None:
    options = {"num_local_experts": 2, "num_hidden_layers": 1}
    model = decoder("mixtral", **options).factory()
    layer = model.model.layers[0]
    layer.forward = lambda x, **_: x if x.sum() > 0 else -x
    with pytest.raises(CaptureError, match="decides by the values of its data") as caught:
        capture(model)
    assert "static=" not in str(caught.value)


def test_sizes_out_of_range_are_refused(mamba: nn.Module) -> None:
    with pytest.raises(CaptureError, match="at least 1"):
        capture(mamba, static=(1, 0))
    with pytest.raises(CaptureError, match=r"static=\(1, 128\)"):
        capture(mamba, dynamic=False)
    with pytest.raises(CaptureError, match="the model has 128 positions"):
        capture(decoder("llama").factory(), static=(1, 200))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    def unfit(x: Tensor) -> Tensor:
        return x + torch.ones(7, 7)

    with pytest.raises(CaptureError, match="unfit does not run"):
        capture(unfit, (torch.ones(2, 3),))
    with pytest.raises(CaptureError):
        capture(Branches(), (torch.ones(2, 3),))
    assert capfd.readouterr() == ("", "")
