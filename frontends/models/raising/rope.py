"""Rotary embeddings, recognised by what they do: pairs of channels turn by their position's angle.

A piece of arithmetic between a value and one derived from it through a table of positions is run on
a vector of ones and zeros, from which the layout and the tables are read, then checked on noise.
The angles are matched with the inverse frequencies among the constants of the program; tables that
match none are kept as tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elidir.frontends.raising.probe import Probe, ProbeError, backward
from elidir.ir import (
    Add,
    Builder,
    Cast,
    Concat,
    Const,
    Div,
    DType,
    Embed,
    Expand,
    Iota,
    Mul,
    Op,
    Opaque,
    Permute,
    Reshape,
    Rope,
    RopeLayout,
    RopeTable,
    Slice,
    Sub,
    Unary,
    Value,
    Weight,
)

_THROUGH = (Add, Cast, Concat, Expand, Mul, Reshape, Slice, Sub)
FAR = (0, 1, 2, 3, 5, 8, 13, 30, 60, 61, 62, 63)
MAX_TABLE = 65536


@dataclass(frozen=True)
class Rotation:
    """What was found: layout, the tables' source, and which axis of x runs over tokens."""

    layout: RopeLayout
    axis: int
    freqs: Weight | None
    scale: float
    tables: tuple[Weight, Weight] | None


@dataclass(frozen=True)
class _Runner:
    """Applies the piece between `x` and the result of `op` to one feed [T, D], for all heads."""

    probe: Probe
    x: Value
    op: Op
    op_of: Any
    axis: int
    first: int  # channel of x that is channel 0 of the result

    @property
    def width(self) -> int:
        """Channels of a head."""
        return self.op.result.type.dims[3]

    def __call__(self, feed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return [T, D]."""
        batch, length = positions.shape
        shape = [d if isinstance(d, int) else batch for d in self.x.type.dims]
        wide = torch.zeros(length, shape[3])
        wide[:, self.first : self.first + self.width] = feed
        view = [1, 1, 1, shape[3]]
        shape[self.axis] = view[self.axis] = length
        inputs = self.probe.index_inputs(batch, length, 0)
        inputs[self.probe.positions] = positions
        inputs[self.x] = wide.reshape(view).expand(shape).contiguous()
        (out,) = self.probe.run([self.op.result], self.op_of, inputs)
        return out[0].select(2 - self.axis, 0)


class RopeRule:
    """Replaces a hand-written rotary embedding by `rope`."""

    def __init__(self, probe: Probe, add_weight: Any) -> None:
        self.probe, self.add_weight = probe, add_weight

    def __call__(self, op: Op, b: Builder) -> Sequence[Value] | None:
        """Raise the op if it ends a rotation."""
        if not isinstance(op, Add | Concat | Reshape) or self.probe.positions is None:
            return None
        op_of = lambda v: op if v in op.results else b.op_of(v)  # noqa: E731
        dims = op.result.type.dims
        if (
            len(dims) != 4
            or not isinstance(dims[3], int)
            or (isinstance(op, Reshape) and not _folds(op))
        ):
            return None
        for x, ops in self.probe.cuts(op.result, op_of, _passes):
            lo = _first_channel(x, op.result, ops)
            if lo is None:
                continue
            if not any(self._reads_table(o, op_of) for o in ops):
                return None
            found = self._find(x, op, op_of, lo)
            if found is None:
                return None
            part = (
                x
                if x.type == op.result.type
                else b.emit(Slice(x, axis=3, start=lo, stop=lo + dims[3]))
            )
            return [self._emit(part, found, b)]
        return None

    def _reads_table(self, op: Op, op_of: Any) -> bool:
        index = [v for v in op.operands() if self.probe.is_index(v, op_of)]
        return any(v.type.dims and not isinstance(op_of(v), Const) for v in index)

    def _find(self, x: Value, op: Op, op_of: Any, lo: int) -> Rotation | None:
        key = ("rope", self.probe.key([op.result], op_of, {x}))
        return self.probe.once(key, lambda: self._measure(x, op, op_of, lo))

    def _emit(self, x: Value, found: Rotation, b: Builder) -> Value:
        pos = self.probe.positions
        if found.freqs is not None:
            dtype = x.tensor.dtype if x.tensor.dtype is not DType.F64 else DType.F32
            table = RopeTable(pos, found.freqs, scale=found.scale, dtype=dtype)
            cos, sin = b.append(table)
        else:
            cos, sin = (b.emit(Embed(pos, t)) for t in found.tables)
        if found.axis == 2:
            return b.emit(Rope(x, cos, sin, layout=found.layout))
        heads_first = b.emit(Permute(x, order=(0, 2, 1, 3)))
        turned = b.emit(Rope(heads_first, cos, sin, layout=found.layout))
        return b.emit(Permute(turned, order=(0, 2, 1, 3)))

    # -- measuring

    def _measure(self, x: Value, op: Op, op_of: Any, lo: int) -> Rotation | None:
        axis = self._token_axis(x)
        if axis is None:
            return None
        run = _Runner(self.probe, x, op, op_of, axis, lo)
        inputs = self._inputs(op, op_of)
        for layout in RopeLayout:
            read = _read_tables(run, layout, inputs)
            if read is not None:
                return self._source(
                    read, layout, axis, run, inputs, backward([op.result], op_of, {x})
                )
        return None

    def _token_axis(self, x: Value) -> int | None:
        length = self._length()
        axes = [i for i in (1, 2) if x.type.dims[i] == length]
        return axes[0] if len(axes) == 1 else None

    def _inputs(self, op: Op, op_of: Any) -> torch.Tensor:
        """Return positions [B, T]: far ones where the program reads them, else 0, 1, 2, .."""
        batch, length = self.probe.sizes(2, len(FAR))
        counted = torch.arange(length)
        ops = backward([op.result], op_of, set())
        if any(isinstance(o, Iota) and o.length == self._length() for o in ops):
            return counted.expand(batch, -1)
        far = torch.cat([torch.tensor(FAR), counted + FAR[-1] + 1])[:length]
        return far.clamp(max=(self._bound() or MAX_TABLE) - 1).expand(batch, -1)

    def _length(self) -> Any:
        return self.probe.positions.type.dims[1]

    def _bound(self) -> int | None:
        length = self._length()
        return length if isinstance(length, int) else self.probe.symbols[str(length)].hi

    def _source(
        self, read: Any, layout: RopeLayout, axis: int, run: _Runner, positions: Any, ops: list[Op]
    ) -> Rotation | None:
        """Find where the tables come from: frequencies of the program, else tables by position."""
        cos, sin = read
        scale = float((cos[0] ** 2 + sin[0] ** 2).sqrt()[0])
        scale = 1.0 if abs(scale - 1) < 1e-6 else scale
        for name, freqs in self._frequencies(ops, cos.shape[1]):
            angles = positions[0][:, None].float() * freqs[None, :].float()
            if _close(angles.cos() * scale, cos) and _close(angles.sin() * scale, sin):
                return Rotation(layout, axis, self.add_weight(name, freqs.float()), scale, None)
        return self._tables(layout, axis, run, cos.shape[1])

    def _frequencies(self, ops: list[Op], half: int) -> list[tuple[str, torch.Tensor]]:
        names = dict.fromkeys(w.name for o in ops for w in o.weights())
        tensors = ((n, self.probe.tensors[n].flatten()) for n in names if n in self.probe.tensors)
        found = [
            (n, t) for n, t in tensors if t.is_floating_point() and t.numel() in (half, 2 * half)
        ]
        return [(n, t[:half]) for n, t in found] + [(n, t[::2]) for n, t in found if len(t) > half]

    def _tables(self, layout: RopeLayout, axis: int, run: _Runner, half: int) -> Rotation | None:
        bound = self._bound()
        if bound is None or bound > MAX_TABLE:
            return None
        batch, _ = self.probe.sizes(1, bound)
        read = _read_tables(run, layout, torch.arange(bound).expand(batch, -1), check=False)
        if read is None:
            return None
        cos, sin = (
            self.add_weight(n, t.contiguous()) for n, t in zip(("cos", "sin"), read, strict=True)
        )
        return Rotation(layout, axis, None, 1.0, (cos, sin))


_COMPLEX = ("aten.view_as_complex.default", "aten.view_as_real.default")


def _passes(op: Op) -> bool:
    if isinstance(op, Opaque):
        return op.target in _COMPLEX
    return (
        isinstance(op, _THROUGH)
        or (isinstance(op, Unary) and op.fn == "neg")
        or (isinstance(op, Div) and not isinstance(op.b, Value))
    )


def _first_channel(x: Value, result: Value, ops: Sequence[Op]) -> int | None:
    """Return which channel of x is the first of the result: 0, unless slices read a part of x."""
    a, b = x.type.dims, result.type.dims
    if x.type == result.type:
        return 0
    if len(a) != 4 or a[:3] != b[:3] or not isinstance(b[3], int):
        return None
    reads = [o for o in ops if x in o.operands()]
    cuts = [o for o in reads if isinstance(o, Slice) and o.axis == 3]
    if len(cuts) < len(reads) or not all(isinstance(o.start, int) for o in cuts):
        return None
    lo, hi = min(o.start for o in cuts), max(o.stop for o in cuts)
    return lo if hi - lo == b[3] else None


def _folds(op: Reshape) -> bool:
    """Whether a reshape joins the last two axes, as interleaved rotations end."""
    return len(op.x.type.dims) == 5


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-5, atol=1e-5))


def _read_tables(
    run: _Runner, layout: RopeLayout, positions: torch.Tensor, *, check: bool = True
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return cos and sin [T, R/2] if the piece rotates pairs of this layout, else None."""
    length = positions.shape[1]
    width = run.width
    noise = torch.randn(length, width, generator=torch.Generator().manual_seed(0))
    try:
        out = run(noise, positions)
    except ProbeError:
        return None
    still = (out == noise).all(0)
    turning = int(width - still.sum()) if not bool(still.all()) else 0
    if turning < 2 or turning % 2 or bool(still[:turning].any()):
        return None
    first, second = _pairs(layout, turning)
    feed = torch.zeros(length, width)
    feed[:, first] = 1.0
    turned = run(feed, positions)
    cos, sin = turned[:, first], turned[:, second]
    if not check or _rotates(noise, out, cos, sin, first, second):
        return cos, sin
    return None


def _pairs(layout: RopeLayout, turning: int) -> tuple[torch.Tensor, torch.Tensor]:
    if layout is RopeLayout.HALF:
        return torch.arange(turning // 2), torch.arange(turning // 2, turning)
    return torch.arange(0, turning, 2), torch.arange(1, turning, 2)


def _rotates(
    x: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
) -> bool:
    a, c = x[:, first], x[:, second]
    return _close(out[:, first], a * cos - c * sin) and _close(out[:, second], c * cos + a * sin)


def pairs_rule(op: Op, b: Builder) -> Sequence[Value] | None:
    """Make [B, T, H*D] -> [B, T, H, D/2, 2] two steps: the heads between are what turns."""
    if not isinstance(op, Reshape) or len(op.x.type.dims) != 3 or len(op.shape) != 5:
        return None
    *lead, half, two = op.shape
    if two != 2 or not isinstance(half, int):
        return None
    heads = b.emit(Reshape(op.x, shape=(*lead, half * 2)))
    return [b.emit(Reshape(heads, shape=op.shape))]


def partial_rope_rule(op: Op, b: Builder) -> Sequence[Value] | None:
    """Join a rotation of the first channels with those after them: one `rope` of them all."""
    if not isinstance(op, Concat) or len(op.parts) != 2 or op.axis != 3:
        return None
    rope, rest = b.op_of(op.parts[0]), b.op_of(op.parts[1])
    first = b.op_of(rope.x) if isinstance(rope, Rope) else None
    if not isinstance(rope, Rope) or not isinstance(first, Slice) or not isinstance(rest, Slice):
        return None
    joined = first.x is rest.x and first.axis == rest.axis == 3 and first.stop == rest.start
    if not joined or (first.step, rest.step) != (1, 1):
        return None
    x, whole = first.x, (0, first.x.type.dims[3])
    if (first.start, rest.stop) != whole:
        x = b.emit(Slice(x, axis=3, start=first.start, stop=rest.stop))
    return [b.emit(Rope(x, rope.cos, rope.sin, layout=rope.layout))]
