"""Activations written out by hand, recognised by their values on a grid.

Any elementwise arithmetic on one value is a candidate: what it computes decides, not how it is
spelled. What equals none of the known activations stays as it is.
"""

from collections.abc import Sequence

import torch

from elidir.frontends.raising.probe import Probe, ProbeError
from elidir.ir import (
    Add,
    Builder,
    Cast,
    Div,
    Mul,
    Op,
    Pow,
    Sub,
    Tensor,
    Unary,
    Value,
)

NAMES = ("gelu_tanh", "gelu", "quick_gelu", "silu", "relu2", "mish", "softplus")
_THROUGH = (Add, Cast, Div, Mul, Pow, Sub, Unary)


class ActivationRule:
    """Replaces a piece of elementwise arithmetic on one value by the activation that it equals."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def __call__(self, op: Op, b: Builder) -> Sequence[Value] | None:
        """Raise the op if it ends an activation."""
        if not isinstance(op, Mul | Pow) or not op.result.tensor.dtype.is_float:
            return None
        op_of = _with(b, op)
        for x, ops in self.probe.cuts(op.result, op_of, _elementwise, limit=12):
            if x.type != op.result.type or not any(isinstance(o, Unary) for o in ops):
                continue
            if name := self._name(x, op, op_of):
                return [b.emit(Unary(x, fn=name))]
        return None

    def _name(self, x: Value, op: Op, op_of: object) -> str | None:
        key = ("activation", self.probe.key([op.result], op_of, {x}))
        return self.probe.once(key, lambda: self._measure(x, op, op_of))

    def _measure(self, x: Value, op: Op, op_of: object) -> str | None:
        sizes = [d if isinstance(d, int) else 2 for d in x.type.dims]
        count = int(torch.tensor(sizes).prod())
        grid = torch.linspace(-9, 9, count).reshape(sizes)
        try:
            (found,) = self.probe.run([op.result], op_of, {x: grid})
        except ProbeError:
            return None
        fits = [n for n in NAMES if torch.allclose(found, self._known(x, n, grid), 1e-5, 1e-6)]
        return fits[0] if fits else None

    def _known(self, x: Value, name: str, grid: torch.Tensor) -> torch.Tensor:
        known = Unary(x, fn=name)
        return self.probe.run([known.result], {known.result: known}.get, {x: grid})[0]


def _elementwise(op: Op) -> bool:
    return isinstance(op, _THROUGH) and isinstance(op.results[0].type, Tensor)


def _with(b: Builder, op: Op) -> object:
    """Return an `op_of` that also knows the op that is being visited."""
    return lambda value: op if value in op.results else b.op_of(value)
