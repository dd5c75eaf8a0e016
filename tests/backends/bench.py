"""One-op programs for tests: random inputs and weights, and the op run through a backend.

A `Bench` makes values with sizes for their symbols and keeps a float64 copy of each tensor, from
which a test computes what the op's docstring says. No expectation lives here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from elidir.backends import Executable, WeightStore, lower, torch_dtype
from elidir.ir import (
    DType,
    Entry,
    Function,
    Mask,
    Module,
    Op,
    Region,
    Symbol,
    Tensor,
    Type,
    Value,
    Weight,
    evaluate,
    parse_dim,
)

TOLERANCE = {DType.F64: 1e-10, DType.F32: 2e-5, DType.BF16: 4e-2}
# Of a grid of bytes, in steps: half a step is the rounding to it.
STEPS = {DType.F64: 0.5001, DType.F32: 0.51, DType.BF16: 1.3}


class Bench:
    """Makes the operands of one op."""

    def __init__(self, dtype: DType = DType.F32, **sizes: int) -> None:
        self.dtype, self.sizes = dtype, sizes or {"B": 2, "T": 5}
        self.params: list[Value] = []
        self.inputs: list[Any] = []
        self.weights: dict[str, torch.Tensor] = {}
        self._wide: dict[Any, torch.Tensor] = {}

    def __getitem__(self, item: Value | Weight) -> torch.Tensor:
        """Return what a tensor holds, in float64 if it is a float."""
        return self._wide[item]

    @property
    def types(self) -> list[Type]:
        """The types of all inputs and weights."""
        return [item.type for item in self._wide]

    def size(self, dim: int | str) -> int:
        """Return the size of a dimension."""
        return evaluate(parse_dim(str(dim)), self.sizes)

    def _param(self, kind: Any, item: Any) -> Value:
        value = Value(kind, f"x{len(self.params)}")
        self.params.append(value)
        self.inputs.append(item)
        return value

    def data(self, tensor: torch.Tensor, *dims: int | str, dtype: DType | None = None) -> Value:
        """Return an input that holds a given tensor."""
        dtype = dtype or self.dtype
        stored = tensor.to(torch_dtype(dtype))
        value = self._param(Tensor(tuple(parse_dim(str(d)) for d in dims), dtype), stored)
        self._wide[value] = stored.double() if dtype.is_float else stored
        return value

    def x(self, *dims: int | str, dtype: DType | None = None) -> Value:
        """Return a random float input."""
        return self.data(torch.randn([self.size(d) for d in dims]), *dims, dtype=dtype)

    def ints(self, high: int, *dims: int | str, dtype: DType = DType.I64) -> Value:
        """Return a random integer input below `high`."""
        found = torch.randint(0, high, [self.size(d) for d in dims])
        return self.data(found, *dims, dtype=dtype)

    def bools(self, *dims: int | str) -> Value:
        """Return a random bool input."""
        found = torch.rand([self.size(d) for d in dims]) < 0.6
        return self.data(found, *dims, dtype=DType.BOOL)

    def mask(self, tensor: torch.Tensor | None, *dims: int | str) -> Value:
        """Return a mask input."""
        a, b, c = (parse_dim(str(d)) for d in dims)
        return self._param(Mask((a, b, c)), tensor)

    def state(self, kind: Any, item: Any) -> Value:
        """Return an input of any other type."""
        return self._param(kind, item)

    def w(self, *dims: int, dtype: DType | None = None, scale: float = 1.0) -> Weight:
        """Return a random weight."""
        dtype = dtype or self.dtype
        return self.fixed(torch.randn(dims) * scale, dtype)

    def fixed(self, tensor: torch.Tensor, dtype: DType) -> Weight:
        """Return a weight that holds a given tensor."""
        weight = Weight(f"w{len(self.weights)}", Tensor(tuple(tensor.shape), dtype))
        self.weights[weight.name] = tensor.to(torch_dtype(dtype))
        self._wide[weight] = self.weights[weight.name].double()
        return weight

    def lower(self, *ops: Op, backends: Sequence[str], results: Sequence[Value] = ()) -> Executable:
        """Return the executable of a function of these ops."""
        region = Region(tuple(self.params), ops, tuple(results) or ops[-1].results)
        function = Function("f", region)
        symbols = {name: Symbol(0, None) for name in self.sizes}
        module = Module("m", {"f": function}, symbols, entries(self.weights))
        return lower(function, module, WeightStore(self.weights), backends=backends)

    def run(self, *ops: Op, backends: Sequence[str], results: Sequence[Value] = ()) -> Any:
        """Run a function of these ops on the inputs made so far."""
        return self.lower(*ops, backends=backends, results=results)(*self.inputs)


def entries(weights: Mapping[str, torch.Tensor]) -> dict[str, Entry]:
    """Return the table of plain weights."""
    return {name: WeightStore({name: tensor}).entry(name) for name, tensor in weights.items()}
