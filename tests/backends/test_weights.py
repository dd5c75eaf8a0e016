"""The weight store: sources by reference, derived entries, sharing without keeping, hashes."""

import gc

import pytest
import torch

from elidir.backends import (
    WeightError,
    Weights,
    WeightStore,
    content_hash,
    content_hashes,
    lower,
)
from elidir.ir import Derived, DType, Entry, Function, Linear, Module, Region, Tensor, Value, Weight


class Doubled:
    """A stored format of its own: bytes that stand for twice their value."""

    format = "doubled"
    sha = "00"

    def __init__(self, tensor: torch.Tensor) -> None:
        self.codes = (tensor / 2).to(torch.int8)

    def load(self) -> torch.Tensor:
        return self.codes.float() * 2


def weight(name: str, *dims: int, dtype: DType = DType.F32) -> Weight:
    """Return a reference."""
    return Weight(name, Tensor(dims, dtype))


def table(store: WeightStore, **derived: tuple[Derived, tuple[int, ...]]) -> Weights:
    """Return the store's entries and some derived ones as a table."""
    found = {name: store.entry(name) for name in store}
    made = {n: Entry(Tensor(dims, DType.F32), expr=e) for n, (e, dims) in derived.items()}
    return Weights(store, found | made)


def test_a_tensor_is_given_by_reference() -> None:
    mine = torch.randn(3, 2)
    found = table(WeightStore({"w": mine})).load(weight("w", 3, 2))
    assert found.data_ptr() == mine.data_ptr()


def test_a_parameter_is_given_without_its_gradient() -> None:
    mine = torch.nn.Parameter(torch.randn(3))
    assert not table(WeightStore({"w": mine})).load(weight("w", 3)).requires_grad


def test_a_format_of_its_own_is_decoded_when_loaded() -> None:
    values = torch.tensor([[2.0, -4.0], [6.0, 0.0]])
    store = WeightStore({"w": Doubled(values)})
    assert store.entry("w") == Entry(Tensor((2, 2), DType.F32), "doubled", "00")
    assert torch.equal(table(store).load(weight("w", 2, 2)), values)


def test_every_derivation() -> None:
    a, b = torch.randn(3, 2), torch.randn(3, 2)
    weights = table(
        WeightStore({"a": a, "b": b}),
        same=(Derived("alias", ("a",)), (3, 2)),
        tall=(Derived("concat", ("a", "b")), (6, 2)),
        wide=(Derived("concat", ("a", "b"), 1), (3, 4)),
        turned=(Derived("transpose", ("a",)), (2, 3)),
        shifted=(Derived("add", ("a", 1.0)), (3, 2)),
        product=(Derived("mul", ("a", "b", 2.0)), (3, 2)),
        nested=(Derived("add", ("shifted", "b")), (3, 2)),
    )
    expected = {
        "same": a, "tall": torch.vstack([a, b]), "wide": torch.hstack([a, b]), "turned": a.T,
        "shifted": a + 1, "product": a * b * 2, "nested": a + 1 + b,
    }  # fmt: skip
    for name, want in expected.items():
        assert torch.equal(weights.load(weight(name, *want.shape)), want), name


def test_derivations_of_int8() -> None:
    w = torch.tensor([[1.0, -127.0, 3.0], [0.0, 5.0, 0.0]])
    kinds = {"scale": ((2,), DType.F32), "rest": ((2, 3), DType.I8), "apart": ((2, 2), DType.F32)}
    table_ = {
        "c": Entry(Tensor((2,), DType.I64), expr=Derived("literal", (1,))),
        "one": Entry(Tensor((), DType.F32), expr=Derived("literal", (0.25,))),
        "all": Entry(Tensor((2, 3), DType.I8), expr=Derived("quantize", ("w",))),
        "scale": Entry(Tensor(*kinds["scale"]), expr=Derived("quantize_scale", ("w", "c"))),
        "rest": Entry(Tensor(*kinds["rest"]), expr=Derived("quantize", ("w", "c"))),
        "apart": Entry(Tensor(*kinds["apart"]), expr=Derived("columns", ("w", "c"))),
    }
    weights = Weights(WeightStore({"w": w}), table_)

    def load(name: str) -> torch.Tensor:
        return weights.load(Weight(name, table_[name].type))

    assert load("one").item() == 0.25
    assert load("one").dim() == 0
    assert load("c").tolist() == [1, -1]
    assert load("all").tolist() == [[1, -127, 3], [0, 127, 0]]
    assert torch.equal(load("scale"), torch.tensor([3.0 / 127, 1.0]))
    assert load("rest").tolist() == [[42, 0, 127], [0, 0, 0]]
    assert load("apart").tolist() == [[-127.0, 0.0], [5.0, 0.0]]


def test_a_weight_that_holds_no_number_is_not_quantized() -> None:
    entry = Entry(Tensor((1, 2), DType.I8), expr=Derived("quantize", ("w",)))
    weights = Weights(WeightStore({"w": torch.tensor([[1.0, float("nan")]])}), {"q": entry})
    with pytest.raises(WeightError, match="holds NaN or infinity"):
        weights.load(Weight("q", entry.type))


def test_a_weight_is_converted_to_the_type_of_its_reference() -> None:
    mine = torch.randn(4)
    weights = table(WeightStore({"w": mine}))
    found = weights.load(weight("w", 4, dtype=DType.BF16))
    assert torch.equal(found, mine.bfloat16())
    assert weights.load(weight("w", 4, dtype=DType.BF16)) is found


def test_an_alias_shares_what_is_prepared_of_its_weight() -> None:
    weights = table(
        WeightStore({"embed": torch.randn(4, 2)}), head=(Derived("alias", ("embed",)), (4, 2))
    )
    first = weights.prepare("twice", [weight("embed", 4, 2)], lambda t: t * 2)
    assert weights.prepare("twice", [weight("head", 4, 2)], lambda t: t * 3) is first
    assert weights.prepare("other", [weight("head", 4, 2)], lambda t: t * 3) is not first


def test_what_no_kernel_keeps_is_forgotten() -> None:
    weights = table(WeightStore({"w": torch.randn(4, 2)}))
    made = weights.prepare("twice", [weight("w", 4, 2)], lambda t: t * 2)
    assert len(weights.store._shared) > 0
    del made
    gc.collect()
    assert len(weights.store._shared) == 0


def test_two_functions_share_packed_weights() -> None:
    x = Value(Tensor((1, 3), DType.F32), "x")
    op = Linear(x, weight("w", 5, 3))
    function = Function("f", Region((x,), (op,), op.results))
    original = torch.randn(5, 3)
    store = WeightStore({"w": original})
    module = Module("m", {"f": function}, weights={"w": store.entry("w")})
    first = lower(function, module, store)
    shared = len(store._shared)
    second = lower(function, module, store)
    assert len(store._shared) == shared
    row = torch.randn(1, 3)
    for program in (first, second):
        torch.testing.assert_close(program(row)[0], row @ original.T)


def test_a_weight_of_another_shape_is_refused() -> None:
    weights = table(WeightStore({"w": torch.randn(4, 2)}))
    with pytest.raises(WeightError, match=r"shape \[4, 2\], not f32\[2, 4\]"):
        weights.load(weight("w", 2, 4))


def test_a_missing_weight_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(WeightError, match=r"did you mean 'layers\.0\.q'"):
        Weights(WeightStore({"layers.0.q": torch.ones(1)}), {}).load(weight("layers.0.p", 1))


def test_a_second_weight_of_one_name_is_refused() -> None:
    store = WeightStore({"w": torch.ones(1)})
    with pytest.raises(WeightError, match="already in the store"):
        store.add("w", torch.ones(1))


def test_the_hash_is_of_type_shape_and_content() -> None:
    x = torch.randn(6, 4)
    others = [x.bfloat16(), x.reshape(4, 6), x + 1e-6, x.T]
    assert content_hash(x) == content_hash(x.T.contiguous().T)
    assert len({content_hash(x), *map(content_hash, others)}) == 5
    assert len(content_hash(torch.tensor(1.5))) == 16


def test_many_hashes_at_once() -> None:
    tensors = {str(i): torch.full((3,), float(i)) for i in range(9)}
    found = content_hashes(tensors)
    assert found == {name: content_hash(t) for name, t in tensors.items()}


def test_a_weight_that_the_store_has_not_is_named() -> None:
    with pytest.raises(WeightError, match="'v' is not in the store"):
        WeightStore({"w": torch.randn(4, 2)}).source("v")
