"""Work: formulas derived by hand, op by op, and the laws that all of them obey."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

import elidir.cost_models.op_work  # noqa: F401 - registers the functions
from elidir.cost_models import (
    WORK,
    Arithmetic,
    Precision,
    Sizes,
    Store,
    Work,
    WorkError,
    bits_per_weight,
    is_modelled,
    register_format,
    storage_format,
    work,
    work_of,
)
from elidir.cost_models.work import sum_work
from elidir.ir import (
    DECOMPOSITIONS,
    KV,
    OPS,
    Add,
    AddNorm,
    Attention,
    Conv,
    Derived,
    DType,
    Embed,
    Entry,
    FfnExperts,
    FfnGated,
    KvAppend,
    KvRead,
    Linear,
    LinearSplit,
    Mask,
    MaskCausal,
    MatMul,
    Op,
    Opaque,
    QuantizeAddNorm,
    QuantizeGated,
    QuantizeNorm,
    Reshape,
    RmsNorm,
    ScoreAttention,
    Take,
    Tensor,
    TokensTake,
    Type,
    Value,
    Weight,
    decompose,
    symbol,
)

B, T, S = symbol("B"), symbol("T"), symbol("S")
MATRIX, VECTOR = Arithmetic("matrix", "f32"), Arithmetic("vector", "f32")
PLAIN = Sizes()


def f32(*dims: object) -> Tensor:
    return Tensor(dims, DType.F32)  # type: ignore[arg-type]


def val(kind: Type) -> Value:
    return Value(kind, "x")


def test_every_op_of_the_dialect_is_modelled_or_named_here() -> None:
    own = {kind for kind, cls in OPS.items() if cls.__module__.startswith("elidir.")}
    modelled = {cls.kind for cls in WORK}
    assert own - modelled == {"layer", "opaque"}  # a layer is its body; an opaque op is reported
    assert modelled <= set(OPS)


def test_linear_is_two_flops_a_weight_and_row() -> None:
    op = Linear(val(f32(B, T, 64)), Weight("w", f32(256, 64)), Weight("b", f32(256)))
    found = work_of(op, PLAIN)
    assert found.flops[MATRIX] == 2 * B * T * 64 * 256
    assert found.flops[VECTOR] == B * T * 256
    assert found.read == {Store.ACTIVATIONS: B * T * 64 * 4, Store.WEIGHTS: 4 * (256 * 64 + 256)}
    assert found.written == {Store.ACTIVATIONS: B * T * 256 * 4}
    assert found.launches == 1


def test_one_linear_of_several_outputs_reads_its_input_once() -> None:
    x = val(f32(B, T, 64))
    whole = work_of(LinearSplit(x, Weight("w", f32(96, 64)), (64, 16, 16)), PLAIN)
    parts = [work_of(Linear(x, Weight(f"w{n}", f32(n, 64))), PLAIN) for n in (64, 16, 16)]
    apart = parts[0] + parts[1] + parts[2]
    assert whole.flops == apart.flops
    assert whole.read[Store.WEIGHTS] == apart.read[Store.WEIGHTS]
    assert 3 * whole.read[Store.ACTIVATIONS] == apart.read[Store.ACTIVATIONS]
    assert (whole.launches, apart.launches) == (1, 3)


def test_attention_counts_every_pair_twice_over() -> None:
    q, k, v = val(f32(B, 8, T, 64)), val(f32(B, 2, S, 64)), val(f32(B, 2, S, 32))
    found = work_of(Attention(q, k, v, mask=val(Mask((B, T, S)))), PLAIN)
    assert sympy.expand(found.flops[MATRIX] - 2 * B * 8 * T * S * (64 + 32)) == 0
    read = B * 8 * T * 64 * 4 + B * 2 * S * (64 + 32) * 4 + B * T * S
    assert sympy.expand(found.read[Store.ACTIVATIONS] - read) == 0
    assert found.written == {Store.ACTIVATIONS: B * T * 8 * 32 * 4}


def test_cached_keys_are_read_as_kv_and_only_new_ones_written() -> None:
    cache = val(KV(B, 2, S, 64, 64, DType.F16))
    new = val(Tensor((B, 2, T, 64), DType.F16))
    append = KvAppend(cache, new, new)
    found = work_of(append, PLAIN)
    assert found.written == {Store.KV: 2 * B * 2 * T * 64 * 2}
    read = KvRead(append.result)
    assert work_of(read, PLAIN) == Work()
    sizes = Sizes(origins=dict.fromkeys(read.results, Store.KV))
    q = val(Tensor((B, 8, T, 64), DType.F16))
    attention = work_of(Attention(q, *read.results), sizes)
    assert sympy.expand(attention.read[Store.KV] - 2 * B * 2 * (S + T) * 64 * 2) == 0


def test_gated_ffn_costs_what_its_parts_do() -> None:
    x, kind = val(f32(B, T, 64)), f32(128, 64)
    op = FfnGated(x, Weight("g", kind), Weight("u", kind), Weight("d", f32(64, 128)))
    found = work_of(op, PLAIN)
    assert found.flops[MATRIX] == 2 * B * T * 64 * 128 * 3
    assert found.read[Store.WEIGHTS] == 3 * 64 * 128 * 4
    assert found.launches == 3
    both = Linear(x, Weight("gu", f32(256, 64)))
    hidden = val(f32(B, T, 128))
    parts = work_of(both, PLAIN) + work_of(Linear(hidden, Weight("d", f32(64, 128))), PLAIN)
    assert found.flops[MATRIX] == parts.flops[MATRIX]
    product_of_both = 3 * B * T * 128 * 4  # reads gate and up, writes their product
    assert sympy.expand(found.total_bytes - parts.total_bytes - product_of_both) == 0


def test_a_fused_op_does_the_same_arithmetic_with_fewer_bytes_and_launches() -> None:
    x, kind = val(f32(B, T, 64)), f32(128, 64)
    one, some = Weight("s", f32()), Weight("c", Tensor((3,), DType.I64))
    fused: list[Op] = [
        FfnGated(x, Weight("g", kind), Weight("u", kind), Weight("d", f32(64, 128))),
        LinearSplit(x, Weight("w", f32(96, 64)), (64, 32)),
        AddNorm(x, x, Weight("n", f32(64))),
        QuantizeNorm(x, Weight("n", f32(64)), one, some),
        QuantizeAddNorm(x, x, Weight("n", f32(64)), one, some),
        QuantizeGated(x, x, one, some),
    ]
    assert {type(op) for op in fused} == set(DECOMPOSITIONS)
    for op in fused:
        parts = _Parts()
        decompose(op, parts)
        at = {"B": 2, "T": 5}
        whole = work_of(op, PLAIN).evaluate(at)
        apart = sum_work(work_of(o, PLAIN) for o in parts.ops).evaluate(at)
        assert whole.flops == apart.flops
        assert whole.total_bytes <= apart.total_bytes
        assert whole.launches <= apart.launches


class _Parts:
    def __init__(self) -> None:
        self.ops: list[Op] = []

    def append(self, op: Op) -> tuple[Value, ...]:
        self.ops.append(op)
        return op.results

    def emit(self, op: Op) -> Value:
        self.ops.append(op)
        return op.results[0]


@pytest.mark.parametrize(("tokens", "read"), [(1, 2), (3, 6), (100, 8)])
def test_experts_read_as_many_as_the_tokens_can_choose(tokens: int, read: int) -> None:
    x, choice = val(f32(B, T, 64)), val(Tensor((B, T, 2), DType.I64))
    kinds = Weight("gu", f32(8, 256, 64)), Weight("d", f32(8, 64, 128))
    found = work_of(FfnExperts(x, choice, val(f32(B, T, 2)), *kinds), PLAIN)
    number = found.evaluate({"B": 1, "T": tokens})
    assert number.flops[MATRIX] == 2 * tokens * 2 * 3 * 64 * 128
    assert number.read[Store.WEIGHTS] == read * 3 * 64 * 128 * 4


def test_embedding_reads_rows_not_the_table() -> None:
    ids = val(Tensor((B, T), DType.I64))
    found = work_of(Embed(ids, Weight("e", f32(1000, 64))), PLAIN).evaluate({"B": 2, "T": 3})
    assert found.read == {Store.WEIGHTS: 6 * 64 * 4, Store.ACTIVATIONS: 6 * 8}
    assert found.total_flops == 0


def test_choosing_reads_what_is_chosen() -> None:
    x, rows = val(f32(B, T, 64)), val(Tensor((B, 1), DType.I64))
    found = work_of(TokensTake(x, rows), PLAIN)
    assert found.read == {Store.ACTIVATIONS: B * 64 * 4 + B * 8}
    taken = work_of(Take(x, val(Tensor((5,), DType.I64)), axis=1), PLAIN)
    assert taken.written == {Store.ACTIVATIONS: B * 5 * 64 * 4}


def test_products_and_convolutions() -> None:
    a, b = val(f32(B, 4, T, 16)), val(f32(B, 4, 16, S))
    assert work_of(MatMul(a, b), PLAIN).flops[MATRIX] == 2 * B * 4 * T * 16 * S
    image, kernel = val(f32(B, 3, 32, 32)), Weight("k", f32(8, 3, 16, 16))
    op = Conv(image, kernel, stride=(16, 16), padding=(0, 0), dilation=(1, 1))
    assert work_of(op, PLAIN).flops[MATRIX] == B * 2 * 8 * 4 * 3 * 16 * 16


def test_elementwise_norms_views_and_masks() -> None:
    x = val(f32(B, T, 64))
    assert work_of(Add(x, x), PLAIN).flops == {VECTOR: B * T * 64}
    assert work_of(RmsNorm(x, Weight("w", f32(64))), PLAIN).flops == {VECTOR: 4 * B * T * 64}
    assert work_of(Reshape(x, (B, T, 4, 16)), PLAIN) == Work()
    pos = val(Tensor((B, T), DType.I64))
    assert work_of(MaskCausal(pos, pos), PLAIN).written == {Store.ACTIVATIONS: B * T * T}


def test_opaque_counts_its_bytes_and_says_that_it_is_not_modelled() -> None:
    x = val(f32(B, T))
    op = Opaque((x,), (), "aten.erfinv.default", "[]", (f32(B, T),))
    assert not is_modelled(op)
    found = work_of(op, PLAIN)
    assert found.total_bytes == 2 * B * T * 4
    assert not found.flops


# ---- precision and storage


@pytest.mark.parametrize(
    ("name", "bits"),
    [("q4_1", 5), ("q4_0", Fraction(9, 2)), ("q8_0", Fraction(17, 2)), ("int8", 8), ("bf16", 16)],
)
def test_bits_per_weight(name: str, bits: Fraction) -> None:
    assert bits_per_weight(name) == bits


def test_weights_are_read_as_they_are_stored() -> None:
    kind = f32(64, 128)
    op = Linear(val(f32(1, 1, 128)), Weight("w", kind))
    sizes = Sizes({"layers.0.w": Entry(kind, format="q4_1")}, scope="layers.0")
    assert work_of(op, sizes).read[Store.WEIGHTS] == 64 * 128 * 5 // 8


def test_a_weight_made_of_others_has_their_format() -> None:
    kind = f32(64, 128)
    table = {
        "a": Entry(kind, format="q8_0"),
        "b": Entry(kind, format="q8_0"),
        "c": Entry(kind, format="q4_0"),
        "ab": Entry(f32(128, 128), expr=Derived("concat", ("a", "b"))),
        "ac": Entry(f32(128, 128), expr=Derived("concat", ("a", "c"))),
        "sum": Entry(kind, expr=Derived("add", ("a", "b"))),
    }
    assert [storage_format(n, table) for n in ("ab", "ac", "sum")] == ["q8_0", "f32", "f32"]


def test_precision_changes_bytes_and_arithmetic() -> None:
    kind = f32(64, 128)
    op = Linear(val(f32(1, 1, 128)), Weight("w", kind))
    plain, blocks = {"w": Entry(kind)}, {"w": Entry(kind, format="q4_0")}
    for dtype, size in (("f16", 2), ("i8", 1)):
        asked = Precision.of(dtype)
        found = work_of(op, Sizes(plain, precision=asked))
        assert found.read == {Store.ACTIVATIONS: 256, Store.WEIGHTS: 64 * 128 * size}
        assert set(found.flops) == {Arithmetic("matrix", dtype)}
        found = work_of(op, Sizes(blocks, precision=asked))
        assert found.read == {Store.ACTIVATIONS: 256, Store.WEIGHTS: 64 * 128 * 9 // 16}


def test_a_score_of_some_queries_reads_these_alone() -> None:
    q, k = val(f32(1, 4, 100, 8)), val(f32(1, 2, 100, 8))
    rows = val(Tensor((1, 5), DType.I64))
    whole, some = (work_of(ScoreAttention(q, k, rows=r), Sizes()) for r in (None, rows))
    keys, out = 4 * 2 * 100 * 8, 4 * 2 * 100
    assert whole.total_bytes == 4 * 4 * 100 * 8 + keys + out
    assert some.total_bytes == 4 * 4 * 5 * 8 + keys + out + 5 * 8
    assert some.flops[Arithmetic("matrix", "f32")] * 20 == whole.flops[Arithmetic("matrix", "f32")]


def test_wrong_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(WorkError, match="unknown storage format 'q4_2'; did you mean 'q4_"):
        bits_per_weight("q4_2")
    with pytest.raises(WorkError, match="unknown dtype 'fp16'; did you mean 'f16'"):
        Precision.of("fp16")
    with pytest.raises(WorkError, match="'q4_1' is registered already"):
        register_format("q4_1", 5)
    with pytest.raises(WorkError, match="'linear' is registered twice"):
        work(Linear)(lambda op, s: Work())
    with pytest.raises(WorkError, match="the symbol T has no value"):
        Work(launches=T).evaluate({"B": 1})


# ---- laws

works = st.builds(
    lambda a, b, c, n: Work({MATRIX: a * B}, {Store.WEIGHTS: b}, {Store.ACTIVATIONS: c * B * T}, n),
    *[st.integers(0, 10**6)] * 4,
)


@given(works, works, st.integers(0, 9))
def test_evaluation_keeps_sums_and_multiples(a: Work, b: Work, n: int) -> None:
    at = {"B": 3, "T": 7}
    assert (a + b).evaluate(at) == a.evaluate(at) + b.evaluate(at)
    assert (a * n).evaluate(at) == a.evaluate(at) * n
    assert a + b == b + a
    assert a + Work() == a


@given(st.integers(1, 64), st.integers(0, 64))
def test_fewer_tokens_never_cost_more(tokens: int, more: int) -> None:
    q, k = val(f32(B, 4, T, 16)), val(f32(B, 4, T, 16))
    symbolic = work_of(Attention(q, k, k), PLAIN)
    small = symbolic.evaluate({"B": 1, "T": tokens})
    large = symbolic.evaluate({"B": 1, "T": tokens + more})
    assert small.total_flops <= large.total_flops
    assert small.total_bytes <= large.total_bytes
