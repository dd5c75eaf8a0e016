"""Element types: between the IR's names and torch's, and the retyping of a whole region.

`retype` says what it means to run a program in another precision: float types change together, so
that the types in the region stay true and kernels may trust them. No arithmetic lives here.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from elidir.ir import (
    KV,
    AlibiBias,
    DType,
    LinearInt8,
    Op,
    Opaque,
    Quantize,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    Region,
    RopeTable,
    Tensor,
    Type,
    Value,
    Weight,
)

TORCH: dict[DType, torch.dtype] = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.BOOL: torch.bool,
    DType.C64: torch.complex64,
}
_FROM_TORCH = {theirs: ours for ours, theirs in TORCH.items()}

# Weights that enter angles or distances of positions: rounding them to 8 bits moves far tokens.
# Likewise the scales of grids, which products in any precision must share.
PRECISE = (
    *(RopeTable, AlibiBias),
    *(LinearInt8, Quantize, QuantizeAddNorm, QuantizeGated, QuantizeNorm),
)


def torch_dtype(dtype: DType) -> torch.dtype:
    """Return torch's name of an element type."""
    return TORCH[dtype]


def ir_dtype(dtype: torch.dtype) -> DType | None:
    """Return the IR's name of an element type, or None if it has none (complex, quantised)."""
    return _FROM_TORCH.get(dtype)


def retype(region: Region, target: DType) -> Region:
    """Return the region with its floats in `target`.

    float64 makes a program its own oracle. In any narrower type the frequencies and slopes that
    multiply positions stay as they are, and so do the scales of grids.
    """

    def to(dtype: DType) -> DType:
        return target if dtype.is_float else dtype

    values = {p: Value(_retype(p.type, to), p.name) for p in region.params}
    ops = []
    for op in region.ops:
        new = _retype_op(op, values, to, target)
        values.update(zip(op.results, new.results, strict=True))
        ops.append(new)
    params = tuple(values[p] for p in region.params)
    return Region(params, tuple(ops), tuple(values[r] for r in region.results))


def _retype(type_: Type, to: Callable[[DType], DType]) -> Type:
    if isinstance(type_, Tensor | KV):
        return replace(type_, dtype=to(type_.dtype))
    return type_


def _retype_op(
    op: Op, values: dict[Value, Value], to: Callable[[DType], DType], target: DType
) -> Op:
    keep = isinstance(op, PRECISE) and target is not DType.F64

    def weight(w: Weight) -> Weight:
        return w if keep else Weight(w.name, Tensor(w.type.dims, to(w.type.dtype)))

    changes: dict[str, Any] = {
        name: to(item) for name, item in op.attributes().items() if isinstance(item, DType)
    }
    if isinstance(op, Opaque):
        changes["out"] = tuple(_retype(t, to) for t in op.out)
        changes["args"] = json.dumps(_retype_json(json.loads(op.args), to))
    return op.clone(values.__getitem__, weight, **changes)


def _retype_json(item: Any, to: Callable[[DType], DType]) -> Any:
    if isinstance(item, list):
        return [_retype_json(i, to) for i in item]
    if not isinstance(item, dict):
        return item
    if set(item) == {"dtype"} and item["dtype"] in DType._value2member_map_:
        return {"dtype": to(DType(item["dtype"])).value}
    return {k: _retype_json(v, to) for k, v in item.items()}
