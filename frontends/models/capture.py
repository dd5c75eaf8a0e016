"""Capture a model as a flat graph of ATen ops, of any batch and length, without running it.

`capture` exports through torch.export and returns a `Capture`: the graph, where each of its
weights comes from, what its inputs mean and how to rebuild the model's own output. Nothing here
recognises what the ops do: that is raising. What a model is fed is in `signature`, how export is
talked round in `export`, the cleaning of the graph in `tidy`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from elidir.frontends import feeding
from elidir.frontends import signature as sig
from elidir.frontends.export import FunctionModule, export, quiet
from elidir.frontends.signature import CaptureError, Feed, Role
from elidir.frontends.tidy import tidy, without_writes
from elidir.frontends.untouched import is_hugging_face, untouched

FIXED = "give example_inputs= of the sizes that are wanted, and dynamic=False"


class Origin(Enum):
    """What a weight was in the model."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"


@dataclass(frozen=True, eq=False)
class WeightSource:
    """A weight of the graph: its full name in the model, and the model's own tensor.

    Tied weights are the same tensor object.
    """

    name: str
    tensor: Tensor
    origin: Origin


@dataclass(frozen=True)
class Input:
    """An input of the graph; `name` is the model's, `placeholder` the graph's."""

    name: str
    placeholder: str
    role: Role
    dtype: torch.dtype
    dims: sig.Dims


@dataclass(frozen=True)
class Symbol:
    """A dimension that varies, from `lo` to `hi`; `hi` None has no known bound."""

    name: str
    lo: int
    hi: int | None


@dataclass(frozen=True, eq=False)
class Capture:
    """A model as one flat, functional graph of ATen calls.

    Args:
        graph: weights and inputs are its placeholders; each node has `meta["val"]` (a fake tensor)
            and `meta["path"]` (the dotted path of the module that made it).
        weights: where each placeholder that is a weight comes from.
        inputs: the other placeholders, in the order of the model's arguments.
        symbols: by the name that export gave.
        outputs: the name of each output of the graph: `logits`, `0`.
        places: for each of them, where it stands among the model's own flat outputs.
        fixed: the model's flat outputs that are no tensors, by their place.
        scores: whether the first of the outputs is scores over a vocabulary.
        out_spec: rebuilds the model's own output from its flat ones.
        constants: the values of the captured call that are no tensors, by dotted name.
        remarks: what was given up, and why.
        seconds: how long it took.
    """

    graph: fx.GraphModule
    weights: Mapping[str, WeightSource]
    inputs: tuple[Input, ...]
    symbols: Mapping[str, Symbol]
    outputs: tuple[str, ...]
    places: tuple[int, ...]
    fixed: Mapping[int, Any]
    scores: bool
    out_spec: pytree.TreeSpec
    constants: Mapping[str, Any]
    remarks: tuple[str, ...]
    seconds: float


def capture(
    model: nn.Module | Callable[..., Any],
    example_inputs: Any = None,
    *,
    dynamic: bool = True,
    static: tuple[int, int] | None = None,
) -> Capture:
    """Capture a model.

    Args:
        model: a model of transformers, any other module, or a function of tensors. It is given
            back as it was.
        example_inputs: a tuple of positional or a dict of named arguments; a model of
            transformers needs none.
        dynamic: whether batch and length may vary; if not, they are those of the example.
        static: batch and length of a model of transformers that cannot be captured otherwise.

    Raises:
        CaptureError: the model cannot be exported, or the inputs do not fit it.
    """
    started = time.perf_counter()
    module = model if isinstance(model, nn.Module) else FunctionModule(model)
    _check_weights(module)
    feed = _feed(module, example_inputs, dynamic=dynamic, static=static)
    with untouched(module):
        program, feed, remarks = export(module, feed, falls_back=example_inputs is not None)
    with quiet():
        found = _describe(module, program, feed)
    return Capture(**found, remarks=tuple(remarks), seconds=time.perf_counter() - started)


def _check_weights(module: nn.Module) -> None:
    """Refuse a model whose weights were never loaded."""
    held = [*module.named_parameters(), *module.named_buffers()]
    empty = [name for name, tensor in held if tensor.is_meta]
    if empty:
        raise CaptureError(
            f"{type(module).__name__} has no data for {len(empty)} weights, such as {empty[0]}, "
            "which are on the meta device; load them before it is compiled"
        )


def _feed(model: nn.Module, example: Any, *, dynamic: bool, static: tuple[int, int] | None) -> Feed:
    """What to trace the model with."""
    if static is not None:
        feeding.check_static(static)
        if example is not None or not is_hugging_face(model):
            raise CaptureError(f"static= is for models of transformers alone; {FIXED}")
    if example is not None:
        feed = sig.example_feed(model.forward, example, dynamic=dynamic)
        return feeding.stateless(model, feed) if is_hugging_face(model) else feed
    if not is_hugging_face(model):
        raise CaptureError(
            f"{type(model).__name__} is not a model of transformers, so its inputs are unknown; "
            "give example_inputs=, a tuple or a dict of the tensors of one usual call (a factory "
            "returns them behind the module and its tokenizer, or None)"
        )
    if not dynamic and static is None:
        raise CaptureError("a capture that is not dynamic needs its sizes; give static=(1, 128)")
    return feeding.hugging_face_feed(model, static)


# describing what was captured


def _describe(module: nn.Module, program: ExportedProgram, feed: Feed) -> dict[str, Any]:
    """Every field of a Capture that comes from the exported program."""
    program = without_writes(program)
    weights = _weights(module, program)
    user_inputs = [s.arg for s in program.graph_signature.input_specs if _is_user(s)]
    fed = _fed(program, feed)
    spec = program.call_spec.out_spec
    kinds = [s.kind for s in program.graph_signature.output_specs]
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    graph = tidy(program.graph_module)
    nodes = {node.name: node for node in graph.graph.find_nodes(op="placeholder")}
    inputs, symbols = [], {}
    for argument, leaf in zip(user_inputs, fed, strict=True):
        if leaf is None:
            continue
        value = nodes[argument.name].meta["val"]
        inputs.append(Input(leaf.name, argument.name, leaf.role, value.dtype, leaf.dims))
        symbols |= _symbols(leaf.dims, value.shape, ranges)
    names = _output_names(spec)
    fixed, flat = _flat_outputs(graph, kinds, names)
    first = _logits(graph, flat, names, named=is_hugging_face(module) and spec.type is not tuple)
    places = sorted(flat, key=lambda place: place != first)  # what generation reads comes first
    _set_outputs(graph, [flat[place] for place in places])
    _drop_unread(graph, {i.placeholder for i in inputs})
    return {
        "graph": graph,
        "weights": {k: w for k, w in weights.items() if k in _placeholders(graph)},
        "inputs": tuple(inputs),
        "symbols": symbols,
        "outputs": tuple(names[place] for place in places),
        "places": tuple(places),
        "fixed": fixed,
        "scores": first is not None,
        "out_spec": spec,
        "constants": feed.constants,
    }


def _is_user(spec: Any) -> bool:
    """Whether an input of the program is the user's."""
    return bool(spec.kind == InputKind.USER_INPUT)


def _fed(program: ExportedProgram, feed: Feed) -> list[sig.Leaf | None]:
    """The leaves in the program's order of inputs, which need not be the caller's."""
    values, spec = list(range(len(feed.leaves))), pytree.tree_structure((feed.args, feed.kwargs))
    args, kwargs = pytree.tree_unflatten(values, spec)
    ordered = [key for key in program.example_inputs[1] if key in feed.kwargs]
    numbers = pytree.tree_leaves((args, {key: kwargs[key] for key in ordered}))
    return [feed.leaves[i] for i in numbers]


ORIGINS = {
    InputKind.PARAMETER: Origin.PARAMETER,
    InputKind.BUFFER: Origin.BUFFER,
    InputKind.CONSTANT_TENSOR: Origin.CONSTANT,
}


def _weights(module: nn.Module, program: ExportedProgram) -> dict[str, WeightSource]:
    """Where each weight comes from; tensors of the model are its own objects."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    held = {**program.constants, **program.state_dict, **buffers, **parameters}
    return {
        spec.arg.name: WeightSource(spec.target, held[spec.target], ORIGINS[spec.kind])
        for spec in program.graph_signature.input_specs
        if spec.kind in ORIGINS and spec.target is not None
    }


def _symbols(dims: sig.Dims, shape: Sequence[Any], ranges: Mapping[str, Any]) -> dict[str, Symbol]:
    """Our names for the symbols in the shape of one input."""
    found = {}
    for name, size in zip(dims, shape, strict=True):
        if isinstance(name, int) or isinstance(size, int):
            continue
        bounds = ranges[str(size.node.expr)]
        hi = int(bounds.upper) if bounds.upper.is_Integer else None
        found[str(size.node.expr)] = Symbol(name, int(bounds.lower), hi)
    return found


def _placeholders(graph: fx.GraphModule) -> set[str]:
    """Names of all placeholders."""
    return {node.name for node in graph.graph.find_nodes(op="placeholder")}


def _flat_outputs(
    graph: fx.GraphModule, kinds: Sequence[OutputKind], names: Sequence[str]
) -> tuple[dict[int, Any], dict[int, fx.Node]]:
    """What the user gets, by its place: constants, and tensors; buffers that are written are not.

    Raises:
        CaptureError: an output is a size, or nothing is a tensor.
    """
    (output,) = graph.graph.find_nodes(op="output")
    kept = [v for v, k in zip(output.args[0], kinds, strict=True) if k == OutputKind.USER_OUTPUT]
    flat = {i: v for i, v in enumerate(kept) if isinstance(v, fx.Node)}
    for i, node in flat.items():
        if not isinstance(node.meta["val"], Tensor):
            raise CaptureError(f"output {names[i]} of the model is a size; return tensors alone")
    if not flat:
        raise CaptureError("the model returns no tensor; return what it computes")
    return {i: v for i, v in enumerate(kept) if i not in flat}, flat


def _set_outputs(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
    (output,) = graph.graph.find_nodes(op="output")
    output.args = (tuple(nodes),)


def _drop_unread(graph: fx.GraphModule, keep: set[str]) -> None:
    """Erase weights that nothing reads, and inputs that are no tensors."""
    for node in graph.graph.find_nodes(op="placeholder"):
        if not node.users and node.name not in keep:
            graph.graph.erase_node(node)
    graph.recompile()


def _output_names(spec: pytree.TreeSpec) -> tuple[str, ...]:
    """A dotted name for each flat output."""
    whole = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths, _ = pytree.tree_flatten_with_path(whole)
    return tuple(".".join(_step(step) for step in path) for path, _ in paths)


def _step(step: Any) -> str:
    """One step of a path, as text."""
    return str(next(getattr(step, a) for a in ("key", "idx", "name") if hasattr(step, a)))


def _logits(
    graph: fx.GraphModule, flat: Mapping[int, fx.Node], names: Sequence[str], *, named: bool
) -> int | None:
    """Where the scores over a vocabulary stand: the output called so, else one that fits.

    A module of one's own need not name its outputs: [B, T, V] with V words in the table that is
    looked up, or a module's only output [B, T, D], will do.
    """
    places = [p for p in flat if names[p].rpartition(".")[2] == "logits"]
    if places or named:
        return places[0] if places else None
    tables = (n.args[0] for n in graph.graph.nodes if str(n.target) == "aten.embedding.default")
    words = [t.meta["val"].shape[0] for t in tables]
    shapes = {p: n.meta["val"].shape for p, n in flat.items() if n.meta["val"].is_floating_point()}
    fits = [p for p, shape in shapes.items() if len(shape) == 3]
    scored = [p for p in fits if any(shapes[p][2] == n for n in words)]
    return next(iter(scored or (fits if words and len(flat) == 1 else ())), None)
