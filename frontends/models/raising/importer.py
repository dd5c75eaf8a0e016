"""Imports a captured ATen graph into the dialect, node by node, before anything is recognised.

Views become `reshape`, transposes `permute`, a product with a parameter `linear`; what depends on
parameters alone is evaluated and becomes a weight. The type of each result is checked against the
one that export recorded: an op that has no rule, or whose rule would give another type, becomes
`opaque`. Which rule belongs to which ATen op is in `aten.py`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.fx import Node

from elidir.backends import encode_args
from elidir.frontends.raising.sizes import RaiseError, Sizes
from elidir.ir import (
    Const,
    Derived,
    Dim,
    DType,
    Entry,
    IRTypeError,
    Op,
    Opaque,
    Tensor,
    Value,
    Weight,
    format_dim,
)

DTYPES = {
    torch.float64: DType.F64,
    torch.float32: DType.F32,
    torch.float16: DType.F16,
    torch.bfloat16: DType.BF16,
    torch.int64: DType.I64,
    torch.int32: DType.I32,
    torch.int16: DType.I16,
    torch.int8: DType.I8,
    torch.uint8: DType.U8,
    torch.bool: DType.BOOL,
    torch.complex64: DType.C64,
}


SCALAR = Tensor((), DType.F64)
NUMBERS = {
    "sym_float": "aten.scalar_tensor.default",
    "sym_sqrt": "aten.sqrt.default",
    "neg": "aten.neg.default",
    "truediv": "aten.div.Tensor",
    **{n: f"aten.{n}.Tensor" for n in ("add", "sub", "mul")},
    "pow": "aten.pow.Tensor_Tensor",
}
"""The ATen call for each arithmetic of Python on sizes that gives no size."""

Handler = Callable[["Importer", Node], Any]
HANDLERS: dict[str, Handler] = {}


def aten(*targets: str) -> Callable[[Handler], Handler]:
    """Register the rule of some ATen ops, named without their `aten.` prefix."""

    def register(fn: Handler) -> Handler:
        for target in targets:
            HANDLERS[f"aten.{target}"] = fn
        return fn

    return register


@dataclass
class Importer:
    """The state of one import: what stands for each fx node, and what was made."""

    sizes: Sizes
    ops: list[Op] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    made: dict[Node, Any] = field(default_factory=dict)
    consts: dict[Weight, Value] = field(default_factory=dict)

    # -- reading

    def arg(self, node: Node, index: int, name: str = "", default: Any = None) -> Any:
        """Return an argument by position or name: fx nodes and numbers as they are."""
        if index < len(node.args):
            return node.args[index]
        return node.kwargs.get(name, default)

    def value(self, item: Any) -> Value:
        """Return the IR value of an fx node; a weight is read through `const`."""
        made = self.made[item]
        return self.const(made) if isinstance(made, Weight) else made

    def const(self, weight: Weight) -> Value:
        """Return a weight as a value, one `const` op for each."""
        if weight not in self.consts:
            self.consts[weight] = self.emit(Const(weight))
        return self.consts[weight]

    def operand(self, item: Any) -> Any:
        """Return a value, or the Python number that the item is; a size is no number of the IR."""
        made = self.value(item) if isinstance(item, Node) else item
        if isinstance(made, sympy.Expr):
            raise IRTypeError("arithmetic with a size is left to the op as it was captured")
        return made

    def weight(self, item: Any) -> Weight | None:
        """Return the weight that an fx node is, or None."""
        made = self.made.get(item) if isinstance(item, Node) else None
        return made if isinstance(made, Weight) else None

    def dim(self, size: Any) -> Dim:
        """Return a size of export as a dimension over our symbols."""
        if isinstance(size, Node):
            size = size.meta["val"]
        return size if isinstance(size, int) else self.sizes.dim(size.node.expr)

    def type(self, meta: Any) -> Tensor:
        """Return our type of a fake tensor."""
        return Tensor(tuple(map(self.dim, meta.shape)), DTYPES[meta.dtype])

    def shape(self, node: Node) -> tuple[Dim, ...]:
        """Return the shape that export recorded for a node."""
        return self.type(node.meta["val"]).dims

    # -- making

    def emit(self, op: Op) -> Value:
        """Append an op with one result and return it."""
        self.ops.append(op)
        return op.result

    def add_weight(self, name: str, tensor: torch.Tensor) -> Weight:
        """Enter a tensor into the weight table and return its reference."""
        kind = Tensor(tuple(tensor.shape), DTYPES[tensor.dtype])
        self.entries[name] = Entry(kind)
        self.tensors[name] = tensor
        return Weight(name, kind)

    def derive(self, name: str, kind: Tensor, fn: str, *args: str | float) -> Weight:
        """Enter a weight made of others."""
        self.entries[name] = Entry(kind, expr=Derived(fn, args))
        return Weight(name, kind)

    # -- the walk

    def run(self, node: Node) -> None:
        """Import one call node."""
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            self.made[node] = self.dim(node)
        elif isinstance(node.meta.get("val"), torch.SymFloat | float):
            self.made[node] = self._number(node)
        elif node.target is operator.getitem:
            self.made[node] = self.made[node.args[0]][node.args[1]]
        elif self._is_constant(node):
            self.made[node] = self._evaluate(node)
        else:
            mark = len(self.ops)
            made = self._handle(node)
            if made is None:
                del self.ops[mark:]
                self.consts = {w: v for w, v in self.consts.items() if self._still_made(v)}
                made = self._opaque(node)
            self._locate(node, mark)
            self.made[node] = made

    def _still_made(self, value: Value) -> bool:
        return any(value in op.results for op in self.ops)

    def _handle(self, node: Node) -> Any:
        """Return what the rule of the node makes, or None if there is none that fits."""
        handler = HANDLERS.get(str(node.target))
        if handler is None:
            return None
        try:
            made = handler(self, node)
        except (IRTypeError, KeyError):
            return None
        return made if self._fits(made, node.meta["val"]) else None

    def _fits(self, made: Any, meta: Any) -> bool:
        if isinstance(meta, list | tuple):
            return isinstance(made, list | tuple) and all(map(self._fits, made, meta))
        found = made.type if isinstance(made, Value | Weight) else None
        return bool(found == self.type(meta))

    def _locate(self, node: Node, mark: int) -> None:
        path = node.meta.get("path", "")
        for op in self.ops[mark:]:
            object.__setattr__(op, "loc", op.loc or path)

    # -- constants

    def _is_constant(self, node: Node) -> bool:
        """Whether the node depends on parameters and numbers alone."""
        fixed = all(self.weight(n) is not None for n in node.all_input_nodes)
        return fixed and "val" in node.meta and not _is_random(node)

    def _evaluate(self, node: Node) -> Any:
        source = node.args[0] if node.args else None
        weight = self.weight(source)
        if weight is not None and self._is_transpose(node, weight):
            dims = weight.type.dims[::-1]
            kind = Tensor(dims, weight.type.dtype)
            return self.derive(f"{weight.name}.t", kind, "transpose", weight.name)
        fetch = lambda n: self.fetch(self.made[n])  # noqa: E731
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), fetch)
        with torch.no_grad():
            out = node.target(*args, **kwargs)
        return self._keep(node.name, out, weight)

    def _is_transpose(self, node: Node, weight: Weight) -> bool:
        shape = node.meta["val"].shape if isinstance(node.meta["val"], torch.Tensor) else ()
        name = str(node.target).split(".")[1]
        return (
            name in ("t", "numpy_T", "transpose", "permute")
            and len(weight.type.dims) == 2
            and (tuple(shape) == weight.type.dims[::-1] and self._swaps(node))
        )

    def _swaps(self, node: Node) -> bool:
        axes = [a for a in node.args[1:] if not isinstance(a, Node)]
        flat = list(axes[0]) if axes and isinstance(axes[0], list | tuple) else axes
        if str(node.target).split(".")[1] == "permute":
            return [a % 2 for a in flat] == [1, 0]
        return not flat or flat[0] % 2 != flat[1] % 2

    def _keep(self, name: str, out: Any, source: Weight | None) -> Any:
        if isinstance(out, list | tuple):
            return [self._keep(f"{name}.{i}", o, None) for i, o in enumerate(out)]
        if source is not None and _same_storage(out, self.fetch(source)):
            return source
        return self.add_weight(name, out)

    def fetch(self, weight: Weight) -> torch.Tensor:
        """Return the tensor behind a weight."""
        expr = self.entries[weight.name].expr
        if expr is None:
            return self.tensors[weight.name]
        (name,) = expr.sources
        source = self.fetch(Weight(name, self.entries[name].type))
        return source.t() if expr.fn == "transpose" else source

    # -- what is not recognised

    def _number(self, node: Node) -> Value:
        """Return a number that is made of sizes, such as 1 / T, as a tensor f64[]."""
        name = getattr(node.target, "__name__", str(node.target))
        if name not in NUMBERS:
            raise RaiseError(f"elidir does not compute {name} of a size; keep it out of the model")
        scalars = tuple(map(self._scalar, node.args))
        if name == "sym_float":
            return scalars[0]
        return self._call(NUMBERS[name], scalars, {}, (SCALAR,)).results[0]

    def _scalar(self, item: Any) -> Value:
        if isinstance(item, Node) and isinstance(self.made[item], Value):
            return self.value(item)
        call = self._call(NUMBERS["sym_float"], (item,), {"dtype": torch.float64}, (SCALAR,))
        return call.results[0]

    def _opaque(self, node: Node) -> Any:
        meta = node.meta["val"]
        many = isinstance(meta, list | tuple)
        out = tuple(map(self.type, meta)) if many else (self.type(meta),)
        op = self._call(str(node.target), node.args, node.kwargs, out)
        return op.results if many else op.results[0]

    def _call(self, target: str, args: Any, kwargs: Any, out: tuple[Tensor, ...]) -> Op:
        """Append an ATen call as it is."""
        inputs: list[Value] = []

        def refer(item: Any) -> dict[str, Any] | None:
            made = self.made[item] if isinstance(item, Node) else item
            if isinstance(made, Value | Weight):
                inputs.append(self.const(made) if isinstance(made, Weight) else made)
                return {"%": len(inputs) - 1}
            return {"dim": format_dim(made)} if isinstance(item, Node) else None

        text = encode_args(args, kwargs, refer)
        self.ops.append(Opaque(tuple(inputs), (), target, text, out))
        return self.ops[-1]


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and (a.dtype == b.dtype)
    )
