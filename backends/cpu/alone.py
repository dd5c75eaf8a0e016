"""One native op by itself, over tensors of any number of rows: a tape of one record, or of two.

This is how row-wise ops run where many rows come at once. Arithmetic is float32 and rows are
rounded once, when they are written. Whole runs of ops over few rows are in `joined`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from elidir.backends.cpu.native import tape
from elidir.backends.cpu.native.records import FIRST_OUTER, OUTER, TYPES, Code, Record
from elidir.backends.protocol import Answer, No, Yes
from elidir.ir import Op

_NOTHING = (0,) * 5


class Alone:
    """A record over tensors, whose last axis is channels and whose others are rows.

    Args:
        code: what it does; several do it one after another.
        held: tensors that the fields refer to by address.
        fields: of the record.
    """

    def __init__(
        self, code: Code | tuple[Code, ...], held: Sequence[Any] = (), **fields: Any
    ) -> None:
        self.held = tuple(held)
        codes = (code,) if isinstance(code, Code) else code
        self._records = (Record * len(codes))(*(Record(code=c, **fields) for c in codes))
        for record in self._records:
            for i, view in enumerate((*record.ins, *record.outs)):
                view.slot, view.strides[0] = FIRST_OUTER + i, OUTER

    def __call__(
        self,
        ins: Sequence[torch.Tensor],
        outs: Sequence[torch.Tensor | None],
        scratch: torch.Tensor | None = None,
        **fields: Any,
    ) -> bool:
        """Fill `outs`, in the shape of the first of which rows are counted.

        The type is that of the first output, or operand, that holds floats. Returns False if it met
        an index out of range.
        """
        given = [x for x in (*outs, *ins) if x is not None]
        shape = _padded(given[0].shape, 1)
        kind = next(TYPES[x.dtype] for x in given if x.dtype in TYPES)
        fields = {"type": kind, "dims": shape[:3], "width": shape[3], **fields}
        records = type(self._records).from_buffer_copy(self._records)
        for record in records:
            for name, value in fields.items():
                setattr(record, name, value)
        taken = [x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in ins]
        words = [*_NOTHING, address(scratch), *_NOTHING[1:]]
        for group, size in ((taken, 4), (outs, 3)):
            for x in group:
                words += _NOTHING if x is None else (address(x), *_padded(x.stride(), 0)[:3], 0)
            words += _NOTHING * (size - len(group))
        return tape.run(records, words) < 0


def fits(op: Op) -> Answer:
    """Say whether an op's rows are such as a record takes: of fixed width, in three dimensions."""
    dims = op.results[0].tensor.dims
    if len(dims) > 4:
        return No("has over four dimensions")
    return Yes() if isinstance(dims[-1], int) else No("its last axis has no fixed size")


def _padded(numbers: Sequence[int], filling: int) -> tuple[int, ...]:
    """Return four numbers, the last of them those given."""
    return (*(filling,) * (4 - len(numbers)), *numbers)


def address(x: torch.Tensor | None) -> int:
    """Return where a tensor begins, 0 for none."""
    return 0 if x is None else x.data_ptr()
