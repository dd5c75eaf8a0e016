"""Capture a model as a flat graph of ATen ops, of any batch and length, without running it.

`capture` exports through torch.export and returns a `Capture`: the graph, where each of its
weights comes from, what its inputs mean and how to rebuild the model's own output. `evaluate`
computes single values of a captured graph. Nothing here recognises what the ops do: that is
raising. What a model is fed is in `signature`, the cleaning of the graph in `tidy`.
"""

import contextlib
import gc
import inspect
import io
import logging
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from elidir.frontends import signature as sig
from elidir.frontends.signature import CaptureError, Feed, Role
from elidir.frontends.tidy import tidy, without_writes
from elidir.frontends.untouched import is_hugging_face, untouched


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
        outputs: the name of each flat output: `logits`, `0`.
        logits: which of them is scores over a vocabulary, if any.
        out_spec: rebuilds the model's own output; see `rebuild`.
        remarks: what was given up, and why.
        seconds: how long it took.
    """

    graph: fx.GraphModule
    weights: Mapping[str, WeightSource]
    inputs: tuple[Input, ...]
    symbols: Mapping[str, Symbol]
    outputs: tuple[str, ...]
    logits: int | None
    out_spec: pytree.TreeSpec
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
    module = model if isinstance(model, nn.Module) else _Function(model)
    feed = _feed(module, example_inputs, dynamic=dynamic, static=static)
    with untouched(module):
        program, feed, remarks = _export(module, feed, falls_back=example_inputs is not None)
    with _quiet():
        found = _describe(module, program, feed)
    return Capture(**found, remarks=tuple(remarks), seconds=time.perf_counter() - started)


class _Function(nn.Module):
    """A function as a module, since export takes nothing else."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.forward = function


def _feed(model: nn.Module, example: Any, *, dynamic: bool, static: tuple[int, int] | None) -> Feed:
    """What to trace the model with."""
    if example is not None:
        if static is not None:
            raise CaptureError("static= is for models without example_inputs=; give one of them")
        feed = sig.example_feed(model.forward, example, dynamic=dynamic)
        return sig.stateless(model, feed) if is_hugging_face(model) else feed
    if not is_hugging_face(model):
        raise CaptureError(
            f"{type(model).__name__} is not a model of transformers, so its inputs are unknown; "
            "give example_inputs=, a tuple or a dict of the tensors of one usual call"
        )
    if not dynamic and static is None:
        raise CaptureError("a capture that is not dynamic needs its sizes; give static=(1, 128)")
    return sig.hugging_face_feed(model, static)


# export, and what to do when it refuses


def _export(
    module: nn.Module, feed: Feed, *, falls_back: bool
) -> tuple[ExportedProgram, Feed, list[str]]:
    """Export with as many dynamic dimensions as the model allows."""
    try:
        return (*_export_bounded(module, feed), [])
    except _RefusedError as refused:
        if not falls_back or not feed.names:
            raise CaptureError(refused.sentence(module, feed)) from refused.cause
        fixed = feed.names - {sig.BATCH} or feed.names
        remark = f"{' and '.join(sorted(fixed))} fixed: {refused.reason}"
    program, used, more = _export(module, sig.freeze(feed, fixed), falls_back=falls_back)
    return program, used, [remark, *more]


def _export_bounded(
    module: nn.Module, feed: Feed, attempts: int = 4, *, lenient: bool = False
) -> tuple[ExportedProgram, Feed]:
    """Export, narrowing the bounds of dimensions as export suggests."""
    try:
        return _export_once(module, feed, lenient=lenient), feed
    except _RefusedError as refused:
        narrowed = _narrow(feed, str(refused.cause))
        if attempts == 1 or (narrowed is None and (lenient or not refused.is_harmless)):
            raise
    return _export_bounded(module, narrowed or feed, attempts - 1, lenient=narrowed is None)


def _export_once(module: nn.Module, feed: Feed, *, lenient: bool) -> ExportedProgram:
    """Export with exactly these dimensions; if lenient, guards become assertions."""
    example = sig.stretch(feed)
    with torch.no_grad(), _swiftly(), _quiet() as watch:
        try:
            return torch.export.export(
                module,
                example.args,
                example.kwargs,
                dynamic_shapes=_shapes(module, example),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=lenient,
            )
        except Exception as error:  # export raises whatever the model raises
            raise _RefusedError(error, watch) from error


def _shapes(module: nn.Module, feed: Feed) -> dict[str, Any]:
    """The dimensions of each argument, as export wants them."""
    named = {name: Dim(name, min=lo, max=hi) for name, (lo, hi) in feed.limits.items()}
    leaves = [
        leaf and {i: named[d] for i, d in enumerate(leaf.dims) if isinstance(d, str)}
        for leaf in feed.leaves
    ]
    spec = pytree.tree_structure((feed.args, feed.kwargs))
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)


class _RefusedError(Exception):
    """Export said no."""

    def __init__(self, cause: Exception, watch: "_Watch") -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.watch = watch
        self.place = next(iter(watch.fixed.values()), "") or _last_place(cause)

    @property
    def is_harmless(self) -> bool:
        """Whether export only minds single sizes that torch, not the model, tells from others.

        Slicing a table to a length asks whether the length is the table's own; either way the
        result is the same. Where the model's code asks, it is not.
        """
        odd = re.findall(r"satisfy the generated guard .* != (\d+)\.", str(self.cause))
        asked = {number for guard in self.watch.branches for number in re.findall(r"\d+", guard)}
        return bool(odd) and "specialized" not in str(self.cause) and not asked & set(odd)

    @property
    def reason(self) -> str:
        """One line: what, and where in the model."""
        lines = (line.strip(" -") for line in str(self.cause).splitlines())
        useful = [line for line in lines if line and "TORCH_LOGS" not in line]
        first = _in_our_words(useful[0]) if useful else type(self.cause).__name__
        return f"{first[:200]}{f' ({self.place})' if self.place else ''}"

    def sentence(self, module: nn.Module, feed: Feed) -> str:
        """The whole refusal, with the remedy."""
        function = getattr(module, "function", None) if isinstance(module, _Function) else None
        what = getattr(function, "__name__", type(module).__name__)
        if is_hugging_face(module) and feed.names and self.is_about_sizes:
            return (
                f"{what} cannot be exported for any length: {self.reason}; "
                "state the batch and length with static=(1, 128), or give example_inputs="
            )
        return (
            f"{what} cannot be exported: {self.reason}; mend the model's code there, "
            "or compile the part of the model around it"
        )

    @property
    def is_about_sizes(self) -> bool:
        """Whether stated sizes would help: data that decide are no matter of sizes."""
        return "Could not guard on data-dependent" not in str(self.cause)


def _in_our_words(line: str) -> str:
    """What export says of a dimension, said plainly; anything else as it is."""
    fixed = re.search(r"You marked (\w+) as dynamic but .* constant \((\d+)\)", line)
    if fixed:
        return f"the model's code fixes {fixed[1]} to the example's {fixed[2]}"
    guard = re.search(r"Not all values of (\w+) = (\S+) in .* the generated guard (.+?)\.?$", line)
    if guard:
        condition = guard[3].replace(guard[2], guard[1])
        return f"the model's code does not treat every {guard[1]} alike, but asks if {condition}"
    return line


def _last_place(error: BaseException) -> str:
    """Where in the model an error arose: the innermost frame outside torch and elidir."""
    told = re.search(r'File "([^"]+)", line (\d+), in (\w+)', str(error))
    if told and not _is_ours(told[1]):
        return _place(told[1], int(told[2]), told[3])
    walk = traceback.walk_tb(error.__traceback__)
    return _innermost([(f.f_code.co_filename, line, f.f_code.co_name) for f, line in walk])


Frame = tuple[str, int, str]


def _stack() -> list[Frame]:
    """File, line and function of every frame now, the innermost last."""
    walk = traceback.walk_stack(None)
    return [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in walk][::-1]


def _innermost(frames: Sequence[Frame]) -> str:
    """The innermost frame that is the model's."""
    theirs = (frame for frame in reversed(frames) if not _is_ours(frame[0]))
    return next((_place(*frame) for frame in theirs), "")


TORCH = str(Path(torch.__file__).parent)
HERE = str(Path(__file__).parent)
STANDARD = str(Path(logging.__file__).parents[1])


def _is_ours(filename: str) -> bool:
    """Whether a file belongs to torch, to elidir, to Python or to nobody."""
    if filename.startswith((TORCH, HERE, "<")):
        return True
    return filename.startswith(STANDARD) and "site-packages" not in filename


def _place(filename: str, line: int, function: str) -> str:
    """A place in the model's source: `modeling_mamba.py:311 in slow_forward`."""
    return f"{Path(filename).name}:{line} in {function}"


class _Watch(logging.Handler):
    """Notes what export decides about sizes: `fixed` ones, and `branches` of the model's code."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.fixed: dict[str, str] = {}
        self.branches: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the place where a symbol became a number, or a guard that the model asked for."""
        message, args = str(record.msg), record.args
        if not isinstance(args, tuple) or len(args) < 2:
            return
        if message.startswith("set_replacement") and str(args[1]).isdigit():
            self.fixed.setdefault(str(args[0]), _innermost(_stack()))
        if "[guard added]" in message and _asked_by_model():
            self.branches.append(re.sub(r"\bs\d+\b", "", str(args[1])))


def _asked_by_model() -> bool:
    """Whether the truth of a size is being asked by the model's code rather than by torch."""
    inner = ""
    for filename, _, _ in reversed(_stack()):
        if not _is_ours(filename):
            return inner == torch.__file__
        inner = filename
    return False


def _torch_loggers() -> list[logging.Logger]:
    """Loggers of torch that write by themselves."""
    known = logging.root.manager.loggerDict
    loggers = (logging.getLogger(name) for name in known if name.startswith("torch."))
    return [logger for logger in loggers if logger.handlers]


@contextlib.contextmanager
def _quiet() -> Iterator[_Watch]:
    """Keep export from printing and logging, and watch what it decides."""
    watch = _Watch()
    sizes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    # "torch.__trace" is torch's record of everything it does: it triples the time under pytest.
    loggers = [sizes, *map(logging.getLogger, ("torch", "torch.__trace")), *_torch_loggers()]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.propagate, logger.handlers = False, []
    sizes.setLevel(logging.INFO)
    sizes.addHandler(watch)
    logging.getLogger("torch").addHandler(logging.NullHandler())
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield watch
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers


@contextlib.contextmanager
def _swiftly() -> Iterator[None]:
    """Save a sixth of export's time: no stack trace for each node, no collection of its garbage.

    Nodes keep the path of their module; a capture of SmolLM2 leaves some 2 MB more garbage.
    """
    collecting, traced = gc.isenabled(), fx.config.do_not_emit_stack_traces
    gc.disable()
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = traced
        if collecting:
            gc.enable()


SUGGESTION = re.compile(r"^  (\w+) = (.+)$", re.MULTILINE)
RANGE = re.compile(r"Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)")


def _narrow(feed: Feed, message: str) -> Feed | None:
    """The feed with the bounds that export suggests; None if it suggests something else."""
    changed = None
    for name, remedy in SUGGESTION.findall(message):
        found = RANGE.fullmatch(remedy)
        if found and name in feed.limits:
            lo, hi = feed.limits[name]
            changed = sig.bound(changed or feed, name, int(found[1] or lo), int(found[2] or hi))
        elif remedy in feed.names and name in feed.names:
            changed = sig.merge(changed or feed, name, remedy)
        else:
            return None
    return changed


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
    _keep_outputs(graph, kinds)
    _drop_unread(graph, {i.placeholder for i in inputs})
    outputs = _output_names(spec)
    return {
        "graph": graph,
        "weights": {k: w for k, w in weights.items() if k in _placeholders(graph)},
        "inputs": tuple(inputs),
        "symbols": symbols,
        "outputs": outputs,
        "logits": _logits(graph, outputs, inputs, is_hugging_face(module)),
        "out_spec": spec,
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


def _keep_outputs(graph: fx.GraphModule, kinds: Sequence[OutputKind]) -> None:
    """Leave the user's outputs; a model without a cache keeps no buffer that it wrote."""
    (output,) = graph.graph.find_nodes(op="output")
    kept = [v for v, k in zip(output.args[0], kinds, strict=True) if k == OutputKind.USER_OUTPUT]
    output.args = (tuple(kept),)


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
    graph: fx.GraphModule, names: Sequence[str], inputs: Sequence[Input], named: bool
) -> int | None:
    """Which output scores a vocabulary: one called so, else a module's only output [B, T, V]."""
    if "logits" in names:
        return names.index("logits")
    tokens = any(i.role is Role.IDS for i in inputs)
    if named or len(names) != 1 or not tokens:
        return None
    (output,) = graph.graph.find_nodes(op="output")
    value = output.args[0][0].meta["val"]
    return 0 if value.dim() == 3 and value.is_floating_point() else None


# evaluating


def evaluate(capture: Capture, nodes: Sequence[fx.Node], inputs: Mapping[str, Tensor]) -> list[Any]:
    """Compute some nodes of a graph, and only what they need.

    Args:
        capture: the graph and its weights.
        nodes: nodes of `capture.graph`.
        inputs: by the model's name or the placeholder's, of any batch and length within bounds.

    Raises:
        CaptureError: an input that the nodes need is missing.
    """
    needed = _needed(nodes)
    values: dict[fx.Node, Any] = {}
    bound = _bindings(capture, inputs)
    with torch.no_grad():
        for node in capture.graph.graph.nodes:
            if node in needed:
                values[node] = _value(capture, node, values, bound)
    return [values[node] for node in nodes]


def run(capture: Capture, inputs: Mapping[str, Tensor]) -> list[Any]:
    """Compute all flat outputs."""
    (output,) = capture.graph.graph.find_nodes(op="output")
    flat = output.args[0]
    computed = iter(evaluate(capture, [v for v in flat if isinstance(v, fx.Node)], inputs))
    return [next(computed) if isinstance(v, fx.Node) else v for v in flat]


def rebuild(capture: Capture, flat: Sequence[Any]) -> Any:
    """The model's own output structure, from its flat outputs."""
    return pytree.tree_unflatten(list(flat), capture.out_spec)


def _needed(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    found: set[fx.Node] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def _bindings(capture: Capture, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by placeholder."""
    weights = {name: source.tensor for name, source in capture.weights.items()}
    given = {i.placeholder: inputs[i.name] for i in capture.inputs if i.name in inputs}
    return {**weights, **given, **{k: v for k, v in inputs.items() if k not in given}}


def _value(
    capture: Capture, node: fx.Node, values: Mapping[fx.Node, Any], bound: Mapping[str, Tensor]
) -> Any:
    """The value of one node."""
    if node.op == "placeholder":
        if node.name not in bound:
            raise CaptureError(f"the input {node.name} is missing; give its tensor")
        return bound[node.name]
    if node.op == "get_attr":
        return getattr(capture.graph, str(node.target))
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    return node.target(*args, **kwargs)
