"""Recorders: each looks at the values of a running program and keeps what one observation needs.

A recorder sees one instruction at a time, keeps sums and extremes of a fixed size, and turns them
into the observation at the end. A new kind of observation is a class here under its name; what it
means to a pass is said in `elidir.passes`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from elidir.backends import Instruction, Weights
from elidir.backends.reference import attention_weights
from elidir.frontends.calibration.errors import CalibrationError
from elidir.ir import Add, Attention, Linear, LinearSplit, Op, Value, Weight
from elidir.passes import ATTENTION_LOST, LINEAR_INPUTS, SHARES, AttentionLost, LinearInput

Arrays = dict[str, np.ndarray]


class Recorder(Protocol):
    """What keeps the data of one observation."""

    def wants(self, op: Op) -> bool:
        """Whether it looks at an op."""

    def see(
        self, instruction: Instruction, arguments: list[Any], found: Any, weights: Weights
    ) -> None:
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

    def see(
        self, instruction: Instruction, arguments: list[Any], found: Any, weights: Weights
    ) -> None:
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


@recorder(ATTENTION_LOST)
class LastRows:
    """What the last token of each row attends to, in every layer; kept for one call at a time.

    Padding, on either side, is no token: a row has the keys that any of its queries sees.
    """

    def __init__(self) -> None:
        self._rows: dict[Op, list[torch.Tensor]] = {}
        self._softmax: dict[Op, Any] = {}
        self._lost: torch.Tensor | None = None
        self._calls, self._tokens = 0, 0

    def wants(self, op: Op) -> bool:
        """Look at attention that sees its own tokens alone."""
        return isinstance(op, Attention) and op.q.type.dims[2] == op.k.type.dims[2]

    def see(
        self, instruction: Instruction, arguments: list[Any], found: Any, weights: Weights
    ) -> None:
        """Take in the attention of each row's last token, [K]: the mean over heads."""
        op = instruction.op
        if op in self._rows:
            self._end_call()
        assert isinstance(op, Attention)
        q, k = arguments[:2]
        mask = arguments[3] if op.mask is not None else None
        bias = arguments[-1] if op.bias is not None else None
        softmax = self._probabilities(op, weights)
        self._rows[op] = [
            softmax(*_of_row(row, keys, q, k, mask, bias))[0, :, 0].float().mean(0)
            for row, keys in enumerate(_keys(mask, k))
            if len(keys)
        ]

    def _probabilities(self, op: Attention, weights: Weights) -> Any:
        if op not in self._softmax:
            sinks = None if op.sinks is None else weights.load(op.sinks)
            self._softmax[op] = attention_weights(op.scale, op.softcap, sinks)
        return self._softmax[op]

    def _end_call(self) -> None:
        """Count what each attention loses of each other's choice, if all have the same tokens."""
        found = list(self._rows.values())
        self._rows.clear()
        rows = [row for row in zip(*found, strict=False) if _is_alike(row)]
        if not rows or len({len(f) for f in found}) > 1:
            return
        lost = torch.stack([_lost(torch.stack(row)[:, 1:-1]) for row in rows]).mean(0)
        self._lost = lost if self._lost is None else self._lost + lost
        self._calls += 1
        self._tokens += sum(len(row[0]) - 2 for row in rows)

    def observation(self, weights: Weights) -> AttentionLost:
        """Return the means; of no attention where no call had a token to drop."""
        if self._rows:
            self._end_call()
        if self._lost is None:
            return AttentionLost(np.zeros((0, 0, len(SHARES)), np.float32), 0.0)
        return AttentionLost((self._lost / self._calls).numpy(), float(self._tokens))

    @staticmethod
    def to_arrays(observation: AttentionLost) -> Arrays:
        """Return both fields."""
        return {"lost": observation.lost, "tokens": np.asarray(observation.tokens)}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> AttentionLost:
        """Return the observation that some arrays hold."""
        return AttentionLost(arrays["lost"], float(arrays["tokens"]))


def _keys(mask: torch.Tensor | None, k: torch.Tensor) -> list[torch.Tensor]:
    """Return the numbers of each row's tokens."""
    batch, tokens = k.shape[0], k.shape[2]
    if mask is None:
        return [torch.arange(tokens)] * batch
    return [row.any(0).nonzero()[:, 0] for row in mask.expand(batch, -1, -1)]


def _of_row(
    row: int,
    keys: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    """Return what the last token of a row reads: its query, the keys, and its mask and bias."""
    last = keys[-1:]

    def seen(x: torch.Tensor | None, axis: int) -> torch.Tensor | None:
        if x is None:
            return None
        x = x[row if len(x) > 1 else 0][None]
        x = x if x.shape[axis] == 1 else x.index_select(axis, last)
        return x if x.shape[-1] == 1 else x.index_select(-1, keys)

    query = q[row : row + 1].index_select(2, last)
    return query, k[row : row + 1].index_select(2, keys), seen(mask, 1), seen(bias, 2)


def _is_alike(row: Sequence[torch.Tensor]) -> bool:
    """Whether all attentions see equally many tokens, and there is one to drop."""
    return len({len(r) for r in row}) == 1 and len(row[0]) >= 3


def _lost(rows: torch.Tensor) -> torch.Tensor:
    """Return what each attention loses of each other's choice: [L, L, shares], of rows [L, K]."""
    layers, keys = rows.shape
    rows = rows / rows.sum(-1, keepdim=True).clamp(min=1e-9)
    order = rows.argsort(-1, descending=True)
    held = rows.expand(layers, -1, -1).gather(2, order[:, None].expand(-1, layers, -1))
    counts = [min(max(math.ceil(share * keys) - 1, 0), keys - 1) for share in SHARES]
    return 1 - held.cumsum(2)[..., counts]
