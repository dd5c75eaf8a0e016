"""The building blocks of a network, each with its weights.

Embeddings, linear maps, norms, feed-forward blocks and convolutions live here; what has no weights,
or only prepares attention, lives beside its like.
"""

from elidir.ir.errors import IRTypeError, nearest
from elidir.ir.op import Op, Value, Weight, op
from elidir.ir.ops.elementwise import UNARY
from elidir.ir.symbols import Dim, as_dim
from elidir.ir.types import Tensor, Type, check_rank, promote, replace_dim


@op("const")
class Const(Op):
    """out = a weight, as a value."""

    weight: Weight

    def infer(self) -> Type:
        return self.weight.type


@op("embed")
class Embed(Op):
    """out[.., :] = table[ids[..], :]."""

    ids: Value
    table: Weight

    def infer(self) -> Type:
        table = self.table.type
        check_rank(table, 2, "a table [rows, width]")
        if not self.ids.tensor.dtype.is_int:
            raise IRTypeError(f"the ids are {self.ids.tensor}, not integers")
        return Tensor((*self.ids.tensor.dims, *table.dims[1:]), table.dtype)


@op("linear")
class Linear(Op):
    """out = x W^T + b; W is [out, in], b is [out]."""

    x: Value
    weight: Weight
    bias: Weight | None = None

    def infer(self) -> Type:
        return Tensor(_linear_dims(self.x, self.weight, self.bias), self.x.tensor.dtype)


def _linear_dims(x: Value, weight: Weight, bias: Weight | None = None) -> tuple[Dim, ...]:
    if len(weight.type.dims) != 2 or x.tensor.dims[-1:] != weight.type.dims[1:]:
        raise IRTypeError(f"{x.tensor} does not fit the weight @{weight.name}: {weight.type}")
    if bias is not None and bias.type.dims != weight.type.dims[:1]:
        raise IRTypeError(f"the bias {bias.type} does not fit the weight {weight.type}")
    return replace_dim(x.tensor.dims, -1, weight.type.dims[0])


@op("linear.split")
class LinearSplit(Op):
    """Several linear maps of one input as one: x W^T + b, cut along the last axis into `sizes`."""

    x: Value
    weight: Weight
    sizes: tuple[int, ...]
    bias: Weight | None = None

    def infer(self) -> tuple[Type, ...]:
        dims = _linear_dims(self.x, self.weight, self.bias)
        if sum(self.sizes) != dims[-1]:
            raise IRTypeError(f"sizes {self.sizes} do not sum to the {dims[-1]} outputs")
        return tuple(Tensor((*dims[:-1], n), self.x.tensor.dtype) for n in self.sizes)


@op("norm.rms")
class RmsNorm(Op):
    """out = x / sqrt(mean(x^2) + eps) * w over the last axis; in f32 (arXiv 1910.07467)."""

    x: Value
    weight: Weight | None = None
    eps: float = 1e-6

    def infer(self) -> Type:
        return _check_norm(self.x.tensor, self.weight)


def _check_norm(x: Tensor, *weights: Weight | None) -> Tensor:
    if not x.dims:
        raise IRTypeError(f"{x} has no last axis to norm")
    for weight in weights:
        if weight is not None and weight.type.dims != x.dims[-1:]:
            raise IRTypeError(f"the weight {weight.type} does not fit the last axis of {x}")
    return x


@op("norm.layer")
class LayerNorm(Op):
    """out = (x - mean) / sqrt(var + eps) * w + b over the last axis (arXiv 1607.06450)."""

    x: Value
    weight: Weight | None = None
    bias: Weight | None = None
    eps: float = 1e-5

    def infer(self) -> Type:
        return _check_norm(self.x.tensor, self.weight, self.bias)


@op("add_norm")
class AddNorm(Op):
    """sum = a + b; normed = norm.rms(sum): the residual add and the norm that follows it."""

    a: Value
    b: Value
    weight: Weight
    eps: float = 1e-6

    def infer(self) -> tuple[Type, ...]:
        a, b = self.a.tensor, self.b.tensor
        if a != b:
            raise IRTypeError(f"{a} and {b} differ")
        return (a, _check_norm(a, self.weight))


@op("ffn.gated")
class FfnGated(Op):
    """out = (act(x Wg^T) * (x Wu^T)) Wd^T: a gated feed-forward block (arXiv 2002.05202)."""

    x: Value
    gate: Weight
    up: Weight
    down: Weight
    act: str = "silu"

    def infer(self) -> Type:
        if self.act not in UNARY:
            raise IRTypeError(f"unknown activation '{self.act}'{nearest(self.act, UNARY)}")
        if self.gate.type.dims != self.up.type.dims:
            raise IRTypeError(f"gate {self.gate.type} and up {self.up.type} differ")
        hidden = Tensor(_linear_dims(self.x, self.up), self.x.tensor.dtype)
        return Tensor(_linear_dims(Value(hidden), self.down), hidden.dtype)


@op("ffn.experts")
class FfnExperts(Op):
    """out[n] = sum over j of gates[n, j] * ffn_e(x[n]), e = choice[n, j]: a mixture of experts.

    ffn_e(x) = (act(x Wg_e^T) * (x Wu_e^T)) Wd_e^T, with `gate_up` [E, 2F, H] holding Wg over Wu and
    `down` [E, H, F]. x is [.., H]; choice and gates are [.., K]. Each token is computed by its K
    experts alone (arXiv 2401.04088).
    """

    x: Value
    choice: Value
    gates: Value
    gate_up: Weight
    down: Weight
    act: str = "silu"

    def infer(self) -> Type:
        x, choice = self.x.tensor, self.choice.tensor
        if choice.dims != self.gates.tensor.dims or choice.dims[:-1] != x.dims[:-1]:
            raise IRTypeError(f"x {x} and the choice of experts {choice} do not fit")
        check_rank(self.gate_up.type, 3, "gate_up [E, 2F, H]")
        check_rank(self.down.type, 3, "down [E, H, F]")
        experts, width, hidden = self.down.type.dims
        if self.gate_up.type.dims != (experts, 2 * hidden, width) or x.dims[-1] != width:
            raise IRTypeError(f"x {x}, {self.gate_up.type} and {self.down.type} do not fit")
        return x


@op("conv")
class Conv(Op):
    """out = x convolved with `weight` [O, I/groups, k..] over the trailing axes, plus bias."""

    x: Value
    weight: Weight
    bias: Weight | None = None
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] = (0,)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1

    def infer(self) -> Type:
        x, w = self.x.tensor, self.weight.type
        self._check(x, w)
        spatial = x.dims[-len(self.stride) :]
        kernel = w.dims[2:]
        sizes = zip(spatial, kernel, self.stride, self.padding, self.dilation, strict=True)
        out = tuple(as_dim((n + 2 * p - d * (k - 1) - 1) // s + 1) for n, k, s, p, d in sizes)
        lead = x.dims[: -len(self.stride) - 1]
        return Tensor((*lead, w.dims[0], *out), promote(x.dtype, w.dtype))

    def _check(self, x: Tensor, w: Tensor) -> None:
        axes = len(self.stride)
        if len(w.dims) != axes + 2 or len(x.dims) not in (axes + 1, axes + 2):
            raise IRTypeError(f"{x} and the weight {w} do not fit strides of {axes} axes")
        if {len(self.padding), len(self.dilation)} != {axes} or min(self.stride) < 1:
            raise IRTypeError("stride, padding and dilation need one number for each axis")
        if x.dims[-axes - 1] != as_dim(w.dims[1] * self.groups):
            raise IRTypeError(f"{x} has not the channels of {w} in {self.groups} groups")
        if self.bias is not None and self.bias.type.dims != w.dims[:1]:
            raise IRTypeError(f"the bias {self.bias.type} does not fit the weight {w}")
