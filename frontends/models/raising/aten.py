"""ATen ops that work element by element, and casts: a table of plain ones, a rule for the others.

A rule returns the value that stands for the node, or None to leave it opaque. Types are checked
by the importer, so a rule needs no guard against a dtype or shape that it did not expect. Ops that
move elements are in `aten_shapes`, those that combine them in `aten_products`.
"""

from torch.fx import Node

from elidir.frontends.raising.importer import DTYPES, Importer, aten
from elidir.ir import (
    Add,
    Cast,
    Compare,
    Div,
    Maximum,
    Minimum,
    Mul,
    Op,
    Pow,
    Sub,
    Unary,
    Value,
    Where,
)

UNARY = {
    **{f"{n}.default": n for n in "abs ceil cos erf exp floor log log1p mish neg relu".split()},
    **{f"{n}.default": n for n in "reciprocal round rsqrt sigmoid sign silu sin sqrt tanh".split()},
    **{f"{n}_.default": n for n in "relu silu tanh sigmoid neg exp".split()},
    "elu.default": "elu",
    "leaky_relu.default": "leaky_relu",
    "logical_not.default": "not",
    "bitwise_not.default": "not",
    "softplus.default": "softplus",
}
BINARY: dict[str, type[Op]] = {
    "mul": Mul,
    "div": Div,
    "pow": Pow,
    "maximum": Maximum,
    "minimum": Minimum,
    "max": Maximum,
    "min": Minimum,
    "mul_": Mul,
    "div_": Div,
    "true_divide": Div,
    "divide": Div,
    "multiply": Mul,
}
COMPARE = {
    **{n: n for n in "eq ge gt le lt ne".split()},
    **{f"{p}_{n}": n for n in ("and", "or", "xor") for p in ("logical", "bitwise")},
    **{f"__{n}__": n for n in ("and", "or", "xor")},
}
OVERLOADS = ("Tensor", "Scalar", "default", "Tensor_Scalar", "Tensor_Tensor", "other")


def _register_tables() -> None:
    for name, fn in UNARY.items():
        aten(name)(lambda m, n, fn=fn: m.emit(Unary(m.value(n.args[0]), fn=fn)))
    for name, cls in BINARY.items():
        aten(*(f"{name}.{o}" for o in OVERLOADS))(lambda m, n, cls=cls: _binary(m, n, cls))
    for name, fn in COMPARE.items():
        aten(*(f"{name}.{o}" for o in OVERLOADS))(lambda m, n, fn=fn: _compare(m, n, fn))


def _binary(m: Importer, n: Node, cls: type[Op]) -> Value | None:
    if len(n.args) < 2 or n.kwargs.get("rounding_mode"):
        return None
    return m.emit(cls(m.operand(n.args[0]), m.operand(n.args[1])))


def _compare(m: Importer, n: Node, fn: str) -> Value:
    return m.emit(Compare(m.operand(n.args[0]), m.operand(n.args[1]), fn=fn))


_register_tables()


@aten("add.Tensor", "add.Scalar", "add_.Tensor", "sub.Tensor", "sub.Scalar", "sub_.Tensor")
def _add(m: Importer, n: Node) -> Value:
    cls = Add if "add" in str(n.target) else Sub
    right, alpha = m.operand(n.args[1]), m.arg(n, 2, "alpha", 1)
    if alpha != 1:
        right = m.emit(Mul(right, alpha)) if isinstance(right, Value) else right * alpha
    return m.emit(cls(m.operand(n.args[0]), right))


@aten("rsub.Scalar", "rsub.Tensor")
def _rsub(m: Importer, n: Node) -> Value | None:
    return m.emit(Sub(m.operand(n.args[1]), m.value(n.args[0]))) if len(n.args) < 3 else None


@aten("square.default")
def _square(m: Importer, n: Node) -> Value:
    return m.emit(Pow(m.value(n.args[0]), 2))


@aten("gelu.default")
def _gelu(m: Importer, n: Node) -> Value:
    tanh = m.arg(n, 1, "approximate", "none") == "tanh"
    return m.emit(Unary(m.value(n.args[0]), fn="gelu_tanh" if tanh else "gelu"))


@aten("clamp.default", "clamp_min.default", "clamp_max.default", "clip.default", "clamp.Tensor")
def _clamp(m: Importer, n: Node) -> Value:
    low, high = m.arg(n, 1, "min"), m.arg(n, 2, "max")
    if "clamp_max" in str(n.target):
        low, high = None, low
    value = m.value(n.args[0])
    value = value if low is None else m.emit(Maximum(value, m.operand(low)))
    return value if high is None else m.emit(Minimum(value, m.operand(high)))


@aten("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(m: Importer, n: Node) -> Value:
    return m.emit(Where(*(m.operand(a) for a in n.args)))


@aten("masked_fill.Scalar", "masked_fill.Tensor", "masked_fill_.Scalar")
def _masked_fill(m: Importer, n: Node) -> Value:
    return m.emit(Where(m.value(n.args[1]), m.operand(n.args[2]), m.value(n.args[0])))


# ---- casts and identities


@aten(
    *(f"to.{o}" for o in ("dtype", "dtype_layout", "device", "other")),
    *(f"{o}.default" for o in ("_to_copy", "type_as", "contiguous", "clone", "alias", "detach")),
    *(f"{o}.default" for o in ("lift_fresh_copy", "lift_fresh", "detach_", "dropout", "dropout_")),
    "feature_dropout.default",
)
def _cast(m: Importer, n: Node) -> Value:
    return cast_to(m, m.value(n.args[0]), n)


def cast_to(m: Importer, value: Value, n: Node) -> Value:
    """Return the value in the dtype that export recorded for a node."""
    wanted = DTYPES[n.meta["val"].dtype]
    return value if value.tensor.dtype is wanted else m.emit(Cast(value, dtype=wanted))
