"""Recorders: each looks at the values of a running program and keeps what one observation needs.

A recorder sees one instruction at a time, keeps sums and extremes of a fixed size, and turns them
into the observation at the end. A new kind of observation is a class here under its name; what it
means to a pass is said in `elidir.passes`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from elidir.backends import Instruction, Weights
from elidir.frontends.calibration.errors import CalibrationError
from elidir.ir import Add, Linear, LinearSplit, Op, Value, Weight
from elidir.passes import LINEAR_INPUTS, LinearInput

Arrays = dict[str, np.ndarray]


class Recorder(Protocol):
    """What keeps the data of one observation."""

    def wants(self, op: Op) -> bool:
        """Whether it looks at an op."""

    def see(self, instruction: Instruction, arguments: list[Any], found: Any) -> None:
        """Look at what an instruction read and made."""

    def observation(self, weights: Weights) -> Any:
        """Return what was observed."""

    @staticmethod
    def to_arrays(observation: Any) -> Arrays:
        """Return an observation as named arrays."""

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Any:
        """Return the observation that some arrays hold."""


RECORDERS: dict[str, Callable[[], Recorder]] = {}
_R = TypeVar("_R", bound=type[Any])


def recorder(name: str) -> Callable[[_R], _R]:
    """Register the recorder of an observation; a duplicate raises."""

    def register(cls: _R) -> _R:
        if name in RECORDERS:
            raise CalibrationError(f"the observation '{name}' has two recorders; remove one")
        RECORDERS[name] = cls
        return cls

    return register


@dataclass
class _Channels:
    """What is kept of one linear map while the data run."""

    weight: Weight
    reach: torch.Tensor
    squares: torch.Tensor
    outputs: list[float]
    sums: list[float]
    rows: int = 0

    @classmethod
    def of(cls, weight: Weight) -> "_Channels":
        width = int(weight.type.dims[1])
        return cls(weight, torch.zeros(width), torch.zeros(width, dtype=torch.float64), [], [])

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take in rows of inputs and outputs."""
        x, y = x.reshape(-1, x.shape[-1]).float(), y.reshape(-1, y.shape[-1]).float()
        self.reach = torch.maximum(self.reach, x.abs().amax(0))
        self.squares += x.square().sum(0, dtype=torch.float64)
        self.outputs.append(_energy(y))
        self.rows += len(x)


def _energy(rows: torch.Tensor) -> float:
    """Return the energy of a typical row."""
    return float(rows.float().square().sum(-1).median())


@recorder(LINEAR_INPUTS)
class LinearInputs:
    """Greatest magnitudes and mean squares of each input channel of each linear map."""

    def __init__(self) -> None:
        self._seen: dict[str, _Channels] = {}
        self._made: dict[Value, _Channels] = {}

    def wants(self, op: Op) -> bool:
        """Look at linear maps, and at what their outputs are added into."""
        return isinstance(op, Linear | LinearSplit | Add)

    def see(self, instruction: Instruction, arguments: list[Any], found: Any) -> None:
        """Take in what a linear map read, or the sum that it went into."""
        op = instruction.op
        if isinstance(op, Add):
            for kept in (self._made[v] for v in op.operands() if v in self._made):
                kept.sums.append(_energy(found))
            return
        (weight, *_) = op.weights()
        kept = self._seen.setdefault(weight.name, _Channels.of(weight))
        self._made.update(dict.fromkeys(op.results, kept))
        outputs = torch.cat(found, -1) if isinstance(found, tuple | list) else found
        kept.add(arguments[0], outputs)

    def observation(self, weights: Weights) -> dict[str, LinearInput]:
        """Return what was seen, by weight; raises `CalibrationError` for values that are none."""
        return {name: _finished(name, kept, weights) for name, kept in self._seen.items()}

    @staticmethod
    def to_arrays(observation: Mapping[str, LinearInput]) -> Arrays:
        """Return an array for each field of each linear map."""
        return {
            f"{name}/{key}": np.asarray(value)
            for name, kept in observation.items()
            for key, value in asdict(kept).items()
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, LinearInput]:
        """Return the linear maps that some arrays hold."""
        names = dict.fromkeys(key.rpartition("/")[0] for key in arrays)
        return {n: _read(n, arrays) for n in names}


def _read(name: str, arrays: Mapping[str, np.ndarray]) -> LinearInput:
    found = {f.name: arrays[f"{name}/{f.name}"] for f in fields(LinearInput)}
    numbers = {key: float(value) for key, value in found.items() if not value.ndim}
    return LinearInput(**(found | numbers))  # type: ignore[arg-type]


def _finished(name: str, kept: _Channels, weights: Weights) -> LinearInput:
    weight = weights.load(kept.weight)
    for what, tensor in (("the weight", weight), ("what goes into", kept.squares)):
        if not bool(tensor.isfinite().all()):
            raise CalibrationError(
                f"{what} @{name} holds NaN or infinity; repair the model before it is calibrated"
            )
    power = weight.float().square().sum(0)
    arrays = (kept.reach, kept.squares / kept.rows, power)
    numbers = (float(np.mean(n)) if n else 0.0 for n in (kept.outputs, kept.sums))
    return LinearInput(*(t.float().numpy() for t in arrays), *numbers, float(kept.rows))
