"""Opaque ops: arguments as JSON there and back, and ops that torch does not have."""

import json
from typing import Any

import pytest
import torch

from elidir.backends import BackendError
from elidir.backends.reference import decode_args, encode_args
from elidir.ir import DType, Opaque, Tensor
from tests.backends.bench import Bench


def nothing(item: Any) -> None:
    """Refer to nothing."""


def test_arguments_come_back() -> None:
    refer = {"a": {"%": 0}, "b": {"%": 1}, "w": {"@": 0}, "n": {"dim": "T + 1"}}
    args = ["a", [1, "w", ["n"]], None, 2.5, True, float("-inf")]
    text = encode_args(
        args,
        {"dtype": torch.int64, "mode": "mean", "device": torch.device("cpu"), "layout": None},
        lambda item: refer.get(item) if isinstance(item, str) else None,
    )
    found, named = decode_args(text, {"%": ["A", "B"], "@": ["W"]}, lambda dim: len(dim))
    assert found == ["A", [1, "W", [5]], None, 2.5, True, float("-inf")]
    assert named == {"dtype": torch.int64, "mode": "mean"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_dtypes_come_back(dtype: torch.dtype) -> None:
    text = encode_args([dtype], {}, nothing)
    assert decode_args(text, {}, int)[0] == [dtype]


def test_an_argument_without_a_json_form_is_refused() -> None:
    with pytest.raises(BackendError, match="type complex has no JSON form"):
        encode_args([1j], {}, nothing)


def test_an_op_that_torch_does_not_have_is_refused_at_lowering() -> None:
    bench = Bench()
    x = bench.x(3)
    op = Opaque((x,), (), "aten.not_an_op.default", "[[], {}]", (Tensor((3,), DType.F32),))
    with pytest.raises(BackendError, match=r"torch has no op 'aten.not_an_op.default'"):
        bench.lower(op, backends=["reference"])


def test_a_failing_op_says_where_it_is_in_the_model() -> None:
    bench = Bench()
    x = bench.x(3)
    args = json.dumps([[{"%": 0}, [7]], {}])
    op = Opaque((x,), (), "aten.view.default", args, (Tensor((7,), DType.F32),), loc="model.head")
    with pytest.raises(BackendError.__base__, match=r"opaque failed .*at model.head"):
        bench.run(op, backends=["reference"])
