"""Raising: from a captured ATen graph to a module of the elidir dialect.

The graph is imported node by node, then rules name what it computes: norms, activations, attention,
masks over positions, rotary embeddings, experts; last, layers are found and outlined. What no rule
knows stays generic or `opaque`, never an error. Rules look at what is computed, never at a model's
class or at the names of its parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elidir.frontends.capture import Capture, Role
from elidir.frontends.raising import aten, aten_products, aten_shapes  # noqa: F401 - fill a table
from elidir.frontends.raising.activations import ActivationRule
from elidir.frontends.raising.experts import experts_rule
from elidir.frontends.raising.heads import heads_rule, key_heads_rule, unflatten_rule
from elidir.frontends.raising.importer import DTYPES, Importer
from elidir.frontends.raising.layers import outline_layers
from elidir.frontends.raising.masks import MaskRule
from elidir.frontends.raising.norms import norm_rule
from elidir.frontends.raising.positions import PositionRule
from elidir.frontends.raising.probe import Probe
from elidir.frontends.raising.rope import RopeRule, pairs_rule, partial_rope_rule
from elidir.frontends.raising.sizes import Sizes
from elidir.frontends.raising.softmax_attention import SoftmaxAttentionRule
from elidir.ir import (
    Cast,
    Derived,
    Dim,
    DType,
    Entry,
    Function,
    Module,
    Region,
    Rewriter,
    Rule,
    Symbol,
    Tensor,
    Value,
    Weight,
    prune_weights,
    symbol,
    verify,
)
from elidir.passes import Context
from elidir.passes.exact import Canonicalize, Cse, Dce

__all__ = ["Raised", "raise_capture"]

IDS, VALID, POSITIONS = "ids", "valid", "pos"


@dataclass(frozen=True, eq=False)
class Raised:
    """A raised module, its arrays by weight name, and where each parameter comes from.

    `inputs` names, for each parameter of `@forward`, the model's own input; an empty name is a
    parameter that the model does not have (positions, or validity, that it takes for granted).
    `origins` gives the model's own name of each weight that is one of its parameters or buffers.
    """

    module: Module
    tensors: dict[str, torch.Tensor]
    inputs: tuple[str, ...]
    origins: dict[str, str]


def raise_capture(capture: Capture, name: str = "model") -> Raised:
    """Raise a captured graph to a verified module of stage `raised`."""
    sizes = Sizes({k: (s.name, s.lo, s.hi) for k, s in capture.symbols.items()})
    importer = Importer(sizes)
    params, inputs = _parameters(capture)
    _import(capture, importer, params)
    module = _assemble(capture, importer, params, name)
    module = _raise(module, importer, params)
    module, moved = outline_layers(prune_weights(module))
    module = _tidy(module)
    verify(module)
    tensors = {moved[n]: t for n, t in importer.tensors.items() if n in moved}
    stored = {n: tensors[n] for n, e in module.weights.items() if e.expr is None}
    own = {s.name for s in capture.weights.values()}
    origins = {moved[n]: n for n in own if moved.get(n) in stored}
    return Raised(module, stored, inputs, origins)


# ---- import


def _parameters(capture: Capture) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Return the parameters by name, ids, validity and positions first, and the inputs they are."""
    found: dict[str, tuple[Value, str]] = {}
    for i in capture.inputs:
        name = {Role.IDS: IDS, Role.VALID: VALID, Role.POSITIONS: POSITIONS}.get(i.role, i.name)
        dtype = DType.BOOL if i.role is Role.VALID else DTYPES[i.dtype]
        found[name] = (Value(Tensor(tuple(map(_dim, i.dims)), dtype), name), i.name)
    if IDS in found and len(found[IDS][0].type.dims) == 2:
        dims = found[IDS][0].type.dims
        found.setdefault(VALID, (Value(Tensor(dims, DType.BOOL), VALID), ""))
        found.setdefault(POSITIONS, (Value(Tensor(dims, DType.I64), POSITIONS), ""))
    order = [n for n in (IDS, VALID, POSITIONS) if n in found]
    order += [n for n in found if n not in order]
    return {n: found[n][0] for n in order}, tuple(found[n][1] for n in order)


def _dim(dim: str | int) -> Dim:
    return symbol(dim) if isinstance(dim, str) else dim


def _import(capture: Capture, importer: Importer, params: dict[str, Value]) -> None:
    """Fill the importer from the nodes of the graph."""
    by_placeholder = {i.placeholder: i for i in capture.inputs}
    names = _weight_names(capture)
    for node in capture.graph.graph.nodes:
        if node.op == "placeholder" and node.name in by_placeholder:
            info = by_placeholder[node.name]
            importer.made[node] = _parameter(importer, params, info.role, info.name, info.dtype)
        elif node.op == "placeholder":
            source = capture.weights[node.name]
            importer.made[node] = _weight(importer, names, node.name, source.tensor)
        elif node.op == "call_function":
            importer.run(node)


def _parameter(
    importer: Importer, params: dict[str, Value], role: Role, name: str, dtype: torch.dtype
) -> Value:
    key = {Role.IDS: IDS, Role.VALID: VALID, Role.POSITIONS: POSITIONS}.get(role, name)
    value = params[key]
    if role is Role.VALID and dtype is not torch.bool:
        return importer.emit(Cast(value, dtype=DTYPES[dtype]))
    return value


def _weight_names(capture: Capture) -> dict[str, str]:
    return {p: s.name for p, s in capture.weights.items()}


def _weight(
    importer: Importer, names: dict[str, str], placeholder: str, tensor: torch.Tensor
) -> Weight:
    """Enter a weight; one that is the same tensor as an earlier one becomes its alias."""
    for name, known in importer.tensors.items():
        if known is tensor:
            kind = importer.entries[name].type
            importer.entries[names[placeholder]] = Entry(kind, expr=Derived("alias", (name,)))
            return Weight(names[placeholder], kind)
    return importer.add_weight(names[placeholder], tensor.detach())


def _assemble(capture: Capture, importer: Importer, params: dict[str, Value], name: str) -> Module:
    (output,) = [n for n in capture.graph.graph.nodes if n.op == "output"]
    results = tuple(importer.value(n) for n in output.args[0])
    region = Region(tuple(params.values()), tuple(importer.ops), results)
    symbols = {s.name: Symbol(s.lo, s.hi, "capture") for s in capture.symbols.values()}
    function = Function("forward", region)
    return Module(name, {"forward": function}, symbols, importer.entries)


# ---- rules


def _raise(module: Module, importer: Importer, params: dict[str, Value]) -> Module:
    pos, valid = params.get(POSITIONS), params.get(VALID)
    probe = Probe(pos, valid, module.symbols, importer.tensors, importer.entries)
    add = _Adder(importer)
    stages: Sequence[Sequence[Rule]] = (
        (unflatten_rule, norm_rule),
        (ActivationRule(probe), SoftmaxAttentionRule(probe, add)),
        (key_heads_rule, MaskRule(probe, add), pairs_rule, RopeRule(probe, add)),
        (PositionRule(probe, add),),
        (key_heads_rule, experts_rule, heads_rule),
        (unflatten_rule, norm_rule),
        (heads_rule, partial_rope_rule, unflatten_rule),
    )
    module = _tidy(module)
    for rules in stages:
        for rule in rules:
            module = _apply(module, rule, importer)
        module = _tidy(module)
    return module


class _Adder:
    """Enters measured tensors as weights, each content once."""

    def __init__(self, importer: Importer) -> None:
        self.importer = importer

    def __call__(self, name: str, tensor: torch.Tensor) -> Weight:
        for known, held in self.importer.tensors.items():
            if (
                held.shape == tensor.shape
                and held.dtype == tensor.dtype
                and torch.equal(held, tensor)
            ):
                return Weight(known, self.importer.entries[known].type)
        base = name
        while name in self.importer.entries:
            name = f"{base}.{len(self.importer.entries)}"
        return self.importer.add_weight(name, tensor)


def _apply(module: Module, rule: Rule, importer: Importer, limit: int = 8) -> Module:
    """Apply one rule until it no longer fires."""
    for _ in range(limit):
        rewriter = Rewriter(module, rule, by="raise")
        rewriter.weights = importer.entries
        before, module = module, rewriter.run()
        if module is before:
            break
    return module


def _tidy(module: Module) -> Module:
    """Clean up with the exact passes, to a fixpoint."""
    while True:
        before = module
        for step in (Canonicalize(), Cse(), Dce()):
            module = step.run(module, Context(module, by="raise")).module
        if module is before:
            return module
