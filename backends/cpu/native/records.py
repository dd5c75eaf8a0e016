"""The layout of a tape in memory, as `record.h` has it, and the numbers by which it names things.

Numbers only: what an op's record says is decided in `elidir.backends.cpu.forms`.
"""

import ctypes
from enum import IntEnum

import torch

OUTER = -1  # as a view's first stride: the strides are those of the caller's tensor
ARENA, SCRATCH, FIRST_OUTER = 0, 1, 2
RUN_OF_KEYS = 256
WIDEST_HEAD = 512
SEEDS = 0x9E3779B9  # what a seed of noise is multiplied by
BLOCK_OUTPUTS = 64  # of a weight in int8


class Code(IntEnum):
    """What a record does."""

    LINEAR, NORM, ADD_NORM, UNARY, BINARY, GATED, ROPE, ROPE_TABLE, EMBED, TAKE = range(10)
    APPEND, ATTEND, MERGE, LOAD, STORE, DEQUANTIZE = range(10, 16)
    QUANTIZE, LINEAR_INT8, COPY, GAIN, NOISE, PERTURB = range(16, 22)


FUNCTIONS = {
    name: number
    for number, name in enumerate(
        "add sub mul div relu relu2 silu sigmoid tanh gelu gelu_tanh quick_gelu neg exp".split()
    )
}
FORMATS = {"f32": 0, "bf16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 4}
TYPES = {torch.float32: 0, torch.bfloat16: 1}


class View(ctypes.Structure):
    """Rows of channels in some memory: offset and strides in elements."""

    _fields_ = (
        ("slot", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("strides", ctypes.c_int64 * 3),
    )


class Record(ctypes.Structure):
    """One op over its views."""

    _fields_ = (
        ("code", ctypes.c_int64),
        ("type", ctypes.c_int64),
        ("fn", ctypes.c_int64),
        ("dims", ctypes.c_int64 * 3),
        ("width", ctypes.c_int64),
        ("ins", View * 4),
        ("outs", View * 3),
        ("weight", ctypes.c_int64),
        ("bias", ctypes.c_int64),
        ("format", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("extra", ctypes.c_int64 * 4),
        ("number", ctypes.c_double),
        ("limit", ctypes.c_double),
    )


OUTER_WORDS = 5  # address, three strides, length
