"""The library of `tape.cpp`: runs records, one after another, in one call.

`run` takes what the records refer to by address; whoever calls it holds all of that meanwhile.
"""

import ctypes
import functools
from array import array
from collections.abc import Sequence
from pathlib import Path

import torch

from elidir.backends.cpu.native import load
from elidir.backends.cpu.native.records import OUTER_WORDS, Record
from elidir.backends.protocol import Answer, BackendError, No, Yes

SOURCE = Path(__file__).with_name("tape.cpp")
_P, _L = ctypes.c_void_p, ctypes.c_int64


@functools.cache
def available() -> Answer:
    """Return whether the library can be built and loaded here."""
    found = _library()
    return No(found) if isinstance(found, str) else Yes()


@functools.cache
def _library() -> "ctypes.CDLL | str":
    library = load(SOURCE)
    if isinstance(library, str):
        return library
    library.elidir_run.argtypes, library.elidir_run.restype = (_P, _L, _P, _L, _P), _L
    if library.elidir_record_bytes() != ctypes.sizeof(Record):
        return "the compiler lays records out in another way than Python does"
    return library


def run(
    records: "ctypes.Array[Record]", outers: Sequence[int], clock: "array[int] | None" = None
) -> int:
    """Run records; returns -1, or the number of the first that found an index out of range.

    Args:
        records: the tape.
        outers: for each slot its address, three strides and length, one after another.
        clock: takes the nanoseconds of each record.

    Raises:
        BackendError: there is no library, or no memory for the call.
    """
    library = _library()
    if isinstance(library, str):
        raise BackendError(library)
    words = array("q", outers)
    if len(words) % OUTER_WORDS:
        raise BackendError(f"a slot has {OUTER_WORDS} numbers; {len(words)} are no whole slots")
    ticks = None if clock is None else clock.buffer_info()[0]
    threads = torch.get_num_threads()
    found: int = library.elidir_run(records, len(records), words.buffer_info()[0], threads, ticks)
    if found == -2:
        raise BackendError("no memory is left for a step; free some")
    return found
