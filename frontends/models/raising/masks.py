"""Masks and position biases, classified by evaluating them: which predicate of positions are they?

Each hypothesis (causal, a window, valid keys, ALiBi) is read off the values at one length with a
left-padded row and then checked against all of them. A window wider than the probe shows by putting
small numbers in the place of the large ones in the program. What fits nothing stays as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from elidir.frontends.raising.probe import Probe, ProbeError, backward
from elidir.ir import (
    AlibiBias,
    Attention,
    Builder,
    Iota,
    MaskAnd,
    MaskCausal,
    MaskDense,
    MaskValid,
    MaskWindow,
    Op,
    Opaque,
    Reshape,
    Tensor,
    Value,
)

LENGTH, PAD, LARGE = 24, 5, 12
NEVER = -9e3


@dataclass(frozen=True)
class Predicate:
    """A mask over positions: of keys at most `before` back and `after` ahead; None is unbounded."""

    causal: bool = False
    valid: bool = False
    before: int | None = None
    after: int | None = None

    def dense(self, distance: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return it as bool[B, T, T]."""
        out = torch.ones_like(distance, dtype=torch.bool)
        if self.causal:
            out = out & (distance >= 0)
        if self.before is not None:
            out = out & (distance <= self.before)
        if self.after is not None:
            out = out & (-distance <= self.after)
        return out & valid[:, None, :] if self.valid else out


@dataclass(frozen=True, eq=False)
class Reading:
    """What the values of a mask or bias are: a predicate, and slopes f32[H] (none for a mask)."""

    predicate: Predicate
    slopes: torch.Tensor

    def widened(self, at5: Predicate, at6: Predicate, number: int) -> "Reading":
        """Return the reading with the bounds that a large number of the program sets."""
        before = _extrapolate(at5.before, at6.before, number)
        after = _extrapolate(at5.after, at6.after, number)
        mine = self.predicate
        return replace(
            self,
            predicate=replace(mine, before=before or mine.before, after=after or mine.after),
        )


class MaskRule:
    """Replaces the dense masks and biases of `attention` by predicates over positions."""

    def __init__(self, probe: Probe, add_weight: Any) -> None:
        self.probe, self.add_weight = probe, add_weight

    def __call__(self, op: Op, b: Builder) -> Sequence[Value] | None:
        """Raise the mask and the bias of an attention."""
        if not isinstance(op, Attention) or op.k.type.dims[2] != op.q.type.dims[2]:
            return None
        own = self._positions(op, b)
        mask, changed = self._mask(op.mask, own, b)
        bias = op.bias
        if bias is not None and self.probe.is_index(bias, b.op_of):
            found = self._bias(bias, b) if own is self.probe.positions else None
            if found is not None:
                predicate, bias = found
                more = self._emit(predicate, own, b)
                mask = more if mask is None else self._both(mask, more, b)
                changed = True
        return [b.emit(op.clone(mask=mask, bias=bias, loc=""))] if changed else None

    def _both(self, mask: Value, more: Value | None, b: Builder) -> Value:
        return mask if more is None else b.emit(MaskAnd(mask, more))

    def _positions(self, op: Attention, b: Builder) -> Value:
        """Return the attending tokens' positions: the program's, or the slots of another stream."""
        pos, length = self.probe.positions, op.q.type.dims[2]
        if pos is not None and pos.type.dims[1] == length:
            return pos
        return b.emit(Reshape(b.emit(Iota(length)), shape=(1, length)))

    def _mask(self, mask: Value | None, own: Value, b: Builder) -> tuple[Value | None, bool]:
        dense = b.op_of(mask)
        if isinstance(dense, MaskCausal):
            return self._iota_causal(dense, b)
        if not isinstance(dense, MaskDense) or not self.probe.is_index(dense.x, b.op_of):
            return mask, False
        found = self._classify(dense.x, b)
        if found is None or (found.predicate.valid and own is not self.probe.positions):
            return mask, False
        return self._emit(found.predicate, own, b), True

    def _iota_causal(self, op: MaskCausal, b: Builder) -> tuple[Value, bool]:
        """`is_causal` was imported over slots; the program's own positions say the same."""
        positions = self.probe.positions
        if positions is None or op.queries is positions:
            return op.result, False
        if positions.type.dims[1] != op.queries.type.dims[1]:
            return op.result, False
        return b.emit(MaskCausal(positions, positions)), True

    # -- classification

    def _classify(self, x: Value, b: Builder) -> Reading | None:
        key = ("mask", self.probe.key([x], b.op_of, set()))
        return self.probe.once(key, lambda: self._find(x, b))

    def _find(self, x: Value, b: Builder) -> Reading | None:
        """Read the values at one length, then with small numbers in the place of large ones."""
        try:
            plain = self._read(x, b.op_of)
        except ProbeError:
            return None
        for number in _large_numbers(backward([x], b.op_of, set())):
            try:
                small, next_ = (self._read(x, _substituted(b.op_of, number, n)) for n in (5, 6))
            except ProbeError:
                continue  # the number is a size of something else
            if plain is None or small is None or next_ is None:
                return None  # what it does beyond the probe is no predicate over distances
            plain = plain.widened(small.predicate, next_.predicate, number)
        return plain

    def _read(self, x: Value, op_of: Any) -> Reading | None:
        """Return the predicate and slopes of a mask or bias, None if they are neither."""
        inputs = self.probe.index_inputs(2, LENGTH, PAD if self.probe.valid is not None else 0)
        (values,) = self.probe.run([x], op_of, inputs)
        is_bias = values.dtype is not torch.bool
        found = _distances((values > NEVER).all(1) if is_bias else values, inputs, self.probe)
        predicate = None if found is None else _fit(*found)
        if found is None or predicate is None:
            return None
        if not is_bias:
            return Reading(predicate, torch.zeros(0))
        slopes = _slopes(values, found[0] & found[2][:, :, None] & found[2][:, None, :])
        return None if slopes is None else Reading(predicate, slopes)

    def _bias(self, bias: Value, b: Builder) -> tuple[Predicate, Value | None] | None:
        """Return (mask, remaining bias) of an additive bias, or None if it is neither."""
        found, positions = self._classify(bias, b), self.probe.positions
        if found is None or not found.slopes.any():
            return None if found is None else (found.predicate, None)
        if positions is None:
            return None
        slopes = self.add_weight("slopes", found.slopes)
        return found.predicate, b.emit(AlibiBias(positions, slopes, dtype=bias.tensor.dtype))

    # -- building

    def _emit(self, predicate: Predicate, pos: Value, b: Builder) -> Value | None:
        """Return the mask ops of a predicate; None if every query sees every key."""
        valid, terms = self.probe.valid, []
        if predicate.causal:
            terms.append(b.emit(MaskCausal(pos, pos)))
        if (predicate.before, predicate.after) != (None, None):
            before = 2**31 if predicate.before is None else predicate.before
            after = 2**31 if predicate.after is None else predicate.after
            after = 0 if predicate.causal else after
            terms.append(b.emit(MaskWindow(pos, pos, before=before, after=after)))
        if predicate.valid and valid is not None:
            terms.append(b.emit(MaskValid(valid)))
        mask = terms[0] if terms else None
        for term in terms[1:]:
            mask = b.emit(MaskAnd(mask, term))
        return mask


def _distances(
    values: torch.Tensor, inputs: dict[Value, torch.Tensor], probe: Probe
) -> tuple[torch.Tensor, ...] | None:
    """Return the mask over the batch, query minus key distances, validity, if it is [.., T, T]."""
    if values.shape[-1] != values.shape[-2] and values.shape[-2] != 1:
        return None
    length = values.shape[-1]
    valid = inputs.get(probe.valid) if probe.valid is not None else None
    if valid is None or valid.shape[1] != length:
        valid = torch.ones(values.shape[0], length, dtype=torch.bool)
    if probe.positions is not None and inputs[probe.positions].shape[1] != length:
        return None
    slots = torch.arange(length)
    distance = (slots[:, None] - slots[None, :]).expand(valid.shape[0], -1, -1)
    return values.expand(valid.shape[0], length, length), distance, valid


def _fit(seen: torch.Tensor, distance: torch.Tensor, valid: torch.Tensor) -> Predicate | None:
    """Return the predicate that equals `seen` for all valid queries, or None."""
    queries = valid[:, :, None].expand_as(seen)
    possible = queries & valid[:, None, :]
    pairs = seen & possible
    if not pairs.any():
        return None
    hidden = (seen & queries & ~valid[:, None, :]).any()
    furthest, ahead = int(distance[pairs].max()), int(-distance[pairs].min())
    end, start = int(distance[possible].max()), int(-distance[possible].min())
    guess = Predicate(
        causal=ahead == 0,
        valid=bool((~valid).any() and not hidden),
        before=furthest if furthest < end else None,
        after=ahead if 0 < ahead < start else None,
    )
    return guess if bool((guess.dense(distance, valid) == seen)[queries].all()) else None


def _slopes(values: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor | None:
    """Return slopes f32[H] if values = slope * key + (a number for each query), else None."""
    size = pairs.shape[-1]
    values = values.expand(pairs.shape[0], -1, size, size).float()
    row, near = values[0, :, -1, :], pairs[0, -1].nonzero().flatten()
    slopes = (row[:, near[-1]] - row[:, near[0]]) / (near[-1] - near[0]).clamp(min=1)
    keys = torch.arange(size, dtype=torch.float32)
    rest = torch.where(pairs[:, None], values - slopes[None, :, None, None] * keys, torch.nan)
    spread = rest.nan_to_num(-torch.inf).amax(-1) - rest.nan_to_num(torch.inf).amin(-1)
    seen = pairs.any(-1)[:, None].expand_as(spread)
    close = spread[seen].abs() <= 1e-4 * (1 + slopes.abs().max() * size)
    return slopes.contiguous() if bool(close.all()) else None


def _large_numbers(ops: list[Op]) -> list[int]:
    """Return the numbers of a program that may be bounds beyond the probe's length, unsigned."""
    found = {abs(n) for op in ops for n in vars(op).values() if type(n) is int}
    texts = (op.args for op in ops if isinstance(op, Opaque))
    found |= {int(n) for text in texts for n in re.findall(r"(?<![\w.])\d+(?![\w.])", text)}
    return sorted(n for n in found if LARGE <= n < 2**31)


def _substituted(op_of: Any, number: int, small: int) -> Any:
    """Return an `op_of` in which one number of the program is another, whatever its sign."""
    memo: dict[Value, Op | None] = {}

    def look(value: Any) -> Op | None:
        op = op_of(value)
        if op is None or not isinstance(value, Value) or not isinstance(value.type, Tensor):
            return op
        if value not in memo:
            memo[value] = _swapped(op, number, small)
        return memo[value]

    return look


def _swapped(op: Op, number: int, small: int) -> Op:
    """Return the op with another number in it, but with its own results."""
    signed = {number: small, -number: -small}
    swap: dict[str, Any] = {
        k: signed[v] for k, v in vars(op).items() if type(v) is int and v in signed
    }
    if isinstance(op, Opaque):
        swap["args"] = re.sub(rf"(?<![\w.]){number}(?![\w.])", str(small), op.args)
        swap = swap if swap["args"] != op.args else {}
    if not swap:
        return op
    new = op.clone(**swap)
    object.__setattr__(new, "results", op.results)
    return new


def _extrapolate(at5: int | None, at6: int | None, number: int) -> int | None:
    """Return the bound for the program's own number, it being linear in the number."""
    if at5 is None or at6 is None or at6 == at5:
        return None
    return at5 + (number - 5) * (at6 - at5)
