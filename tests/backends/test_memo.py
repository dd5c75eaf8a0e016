"""The memory of kernels for what layers share: used while the value lives, and no longer."""

import gc
import weakref

import torch

from elidir.backends.cpu.memo import KEPT, Memo


def test_values_that_alternate_are_each_derived_once() -> None:
    calls: list[int] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * 2

    memo, values = Memo(double), [torch.tensor(float(i)) for i in range(KEPT)]
    for _ in range(3):
        assert [float(memo(v)) for v in values] == [2.0 * i for i in range(KEPT)]
    assert len(calls) == KEPT


def test_a_value_is_told_from_an_equal_one() -> None:
    memo = Memo(lambda x: x.data_ptr())
    a, b = torch.ones(3), torch.ones(3)
    assert memo(a) == a.data_ptr()
    assert memo(b) == b.data_ptr()


def test_values_are_not_kept_alive_and_results_go_with_the_next() -> None:
    memo = Memo(lambda x: x * 2)
    first = torch.ones(3)
    made = weakref.ref(memo(first))
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    memo(torch.zeros(3))
    gc.collect()
    assert made() is None
