"""Lowering and running whole functions: layers, sizes, errors, memory, and who runs what."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
import torch

from elidir.backends import (
    Answer,
    BackendError,
    Executable,
    ExecutionError,
    Kernel,
    No,
    Weights,
    WeightStore,
    Yes,
    backend,
    backend_names,
    lower,
    protocol,
)
from elidir.backends.reference import FunctionalKV
from elidir.ir import (
    Add,
    AddNorm,
    DType,
    Module,
    Mul,
    Op,
    Region,
    Unary,
    Value,
    parse_module,
    verify,
)
from tests.backends import third_party
from tests.backends.bench import Bench

# A small Llama: two layers of one body, tied embeddings, keys cached after their rotation.
BODY_WEIGHTS = (
    "@norm: f32[16], @q: f32[16, 16], @kv: f32[16, 16], @o: f32[16, 16], "
    "@gate: f32[24, 16], @up: f32[24, 16], @down: f32[16, 24]"
)
DECODER = f"""
module @small stage=graph {{
  sym B in [1, 8]
  sym N in [1, 64]
  sym S in [0, 64]
  sym R in [1, 64]
  weight @embed: f32[40, 16]
  weight @freqs: f32[2]
  weight @head: f32[40, 16] = alias(@embed)
  WEIGHTS
  body @layer(%h: f32[B, N, 16], %cos: f32[B, N, 2], %sin: f32[B, N, 2], %mask: mask[B, N, N + S],
    %kv: kv<B, 2, S, 4, 4, f32, rotated>) weights({BODY_WEIGHTS}) {{
    %n = norm.rms %h, weight=@norm : f32[B, N, 16]
    %q = linear %n, @q : f32[B, N, 16]
    %k, %v = linear.split %n, @kv {{sizes=(8, 8)}} : f32[B, N, 8], f32[B, N, 8]
    %qh = heads.split %q {{heads=4}} : f32[B, 4, N, 4]
    %kh = heads.split %k {{heads=2}} : f32[B, 2, N, 4]
    %vh = heads.split %v {{heads=2}} : f32[B, 2, N, 4]
    %qr = rope %qh, %cos, %sin : f32[B, 4, N, 4]
    %kr = rope %kh, %cos, %sin : f32[B, 2, N, 4]
    %new = kv.append %kv, %kr, %vh : kv<B, 2, N + S, 4, 4, f32, rotated>
    %ks, %vs = kv.read %new : f32[B, 2, N + S, 4], f32[B, 2, N + S, 4]
    %a = attention %qr, %ks, %vs, mask=%mask {{scale=0.5}} : f32[B, N, 16]
    %o = linear %a, @o : f32[B, N, 16]
    %r = add %h, %o : f32[B, N, 16]
    %f = ffn.gated %r, @gate, @up, @down : f32[B, N, 16]
    %out = add %r, %f : f32[B, N, 16]
    yield %out, %new
  }}
  func @step(%ids: i64[B, N], %pos: i64[B, N], %kpos: i64[B, N + S], %mask: mask[B, N, N + S],
    %kv0: kv<B, 2, S, 4, 4, f32, rotated>, %kv1: kv<B, 2, S, 4, 4, f32, rotated>,
    %rows: i64[B, R]) {{
    %h0 = embed %ids, @embed : f32[B, N, 16]
    %cos, %sin = rope.table %pos, @freqs : f32[B, N, 2], f32[B, N, 2]
    LAYER 0
    LAYER 1
    %last = tokens.take %h2, %rows : f32[B, R, 16]
    %logits = linear %last, @head : f32[B, R, 40]
    return %logits, %new0, %new1
  }}
}}
"""


def text() -> str:
    """Return the decoder's text, its repeated lines written out."""
    lines = []
    joined = DECODER.replace(",\n    ", ", ")
    for line in joined.splitlines():
        if "LAYER" in line:
            i = int(line.split()[1])
            lines.append(
                f"%h{i + 1}, %new{i} = layer @layer, [%h{i}, %cos, %sin, %mask, %kv{i}] "
                f'{{scope="layers.{i}"}} : f32[B, N, 16], kv<B, 2, N + S, 4, 4, f32, rotated>'
            )
        elif "WEIGHTS" in line:
            weights = BODY_WEIGHTS.split(", @")
            lines += [f"weight @layers.{i}.{w.lstrip('@')}" for i in (0, 1) for w in weights]
        else:
            lines.append(line)
    return "\n".join(lines)


def small_decoder() -> tuple[Module, WeightStore]:
    """Return the decoder and weights for it, scaled so that values keep their size."""
    module = parse_module(text())
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(entry.type.dims, generator=generator) / entry.type.dims[-1] ** 0.5
        for name, entry in module.weights.items()
        if entry.expr is None
    }
    return module, WeightStore(weights)


@pytest.fixture
def decoder() -> tuple[Module, WeightStore]:
    module = parse_module(text())
    verify(module)
    plain = {name: entry for name, entry in module.weights.items() if entry.expr is None}
    return module, WeightStore({n: torch.randn(e.type.dims) * 0.5 for n, e in plain.items()})


def step(
    program: Executable, ids: torch.Tensor, states: list[Any], start: int, rows: list[int]
) -> tuple[Any, ...]:
    """Run tokens that follow `start` cached ones."""
    batch, new = ids.shape
    pos = torch.arange(start, start + new).expand(batch, new)
    kpos = torch.arange(start + new).expand(batch, -1)
    mask = kpos[:, None, :] <= pos[:, :, None] if new > 1 else None
    return program(ids, pos, kpos, mask, *states, torch.tensor(rows).expand(batch, -1))


def empty(batch: int, dtype: torch.dtype = torch.float32) -> list[FunctionalKV]:
    """Return the states of two layers before the first token."""
    return [FunctionalKV.empty(batch, 2, 4, 4, dtype) for _ in range(2)]


@pytest.mark.parametrize("backends", [["reference"], ["cpu"]])
@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 4], [5, 1, 1]], ids=str)
def test_chunks_give_the_logits_of_the_whole(
    decoder: tuple[Module, WeightStore], backends: list[str], chunks: list[int]
) -> None:
    module, store = decoder
    program = lower(module["step"], module, store, backends=backends)
    ids = torch.randint(0, 40, (2, 7))
    oracle = lower(module["step"], module, store, backends=["reference"], dtype=DType.F64)
    whole, *_ = step(oracle, ids, empty(2, torch.float64), 0, list(range(7)))
    states, start, found = empty(2), 0, []
    for size in chunks:
        rows = list(range(size))
        logits, *states = step(program, ids[:, start : start + size], states, start, rows)
        found.append(logits)
        start += size
    error = (torch.cat(found, 1).double() - whole).abs().max() / whole.abs().max()
    assert error < 1e-5


def test_float64_is_float64_throughout(decoder: tuple[Module, WeightStore]) -> None:
    module, store = decoder
    program = lower(module["step"], module, store, backends=["cpu"], dtype=DType.F64)
    logits, state, _ = step(program, torch.tensor([[1, 2]]), empty(1, torch.float64), 0, [0])
    assert logits.dtype is torch.float64
    assert state.read()[0].dtype is torch.float64
    assert program.taken()["cpu"] == 0


def test_bfloat16_stays_near_float32(decoder: tuple[Module, WeightStore]) -> None:
    module, store = decoder
    ids = torch.randint(0, 40, (2, 6))
    found = []
    for dtype, kind in ((None, torch.float32), (DType.BF16, torch.bfloat16)):
        program = lower(module["step"], module, store, backends=["cpu"], dtype=dtype)
        found.append(step(program, ids, empty(2, kind), 0, [0, 5])[0])
    assert found[1].dtype is torch.bfloat16
    error = (found[1].float() - found[0]).abs().max() / found[0].abs().max()
    assert error < 0.05


# ---- inputs


def test_inputs_that_do_not_fit_are_refused_in_one_sentence(
    decoder: tuple[Module, WeightStore],
) -> None:
    module, store = decoder
    program = lower(module["step"], module, store)
    ids, pos, kpos = torch.ones(1, 2).long(), torch.arange(2)[None], torch.arange(2)[None]
    rows, mask = torch.zeros(1, 1).long(), torch.ones(1, 2, 2).tril().bool()
    good = [ids, pos, kpos, mask, *empty(1), rows]
    program(*good)
    bad = {
        0: [(ids.int(), r"%ids must be i64\[B, N\], but its elements are i32"),
            (ids[0], "reshape it to 2 dimensions"),
            ([1, 2], "must be a tensor i64.*not list"),
            (ids + 39, "ids go from 0 to 39"),
            (ids.expand(9, 2), "B is 9, but this program takes 1 to 8")],
        1: [(pos[:, :1], "expected 2 for N")],
        2: [(kpos[:, :1], r"no size fits for N \+ S")],
        3: [(mask.float(), "None or a bool tensor")],
    }  # fmt: skip
    for index, cases in bad.items():
        for item, message in cases:
            with pytest.raises(ExecutionError, match=message):
                program(*good[:index], item, *good[index + 1 :])
    with pytest.raises(ExecutionError, match="expected 7 inputs"):
        program(*good[:-1])


def test_a_size_is_solved_from_an_expression() -> None:
    bench = Bench(T=3)
    x = bench.x("2*T + 1")
    whole = bench.lower(Mul(x, 2.0), backends=["reference"])
    assert whole(torch.ones(7))[0].tolist() == [2.0] * 7
    with pytest.raises(ExecutionError, match="no size fits"):
        whole(torch.ones(6))


def test_a_size_is_taken_from_a_state_when_no_tensor_has_it(
    decoder: tuple[Module, WeightStore],
) -> None:
    text_ = """
module @state stage=graph {
  sym S in [0, inf]
  func @f(%kv: kv<1, 2, S, 4, 4, f32>) {
    %n = iota {length=S} : i64[S]
    return %n
  }
}
"""
    module = parse_module(text_)
    program = lower(module["f"], module, WeightStore())
    state = FunctionalKV(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4))
    assert program(state)[0].tolist() == [0, 1, 2, 3, 4]


def test_a_size_that_no_input_has_is_refused_at_lowering() -> None:
    text_ = """
module @nowhere stage=raised {
  sym T in [1, inf]
  func @f(%x: f32[T*T]) {
    %n = iota {length=T} : i64[T]
    return %n
  }
}
"""
    module = parse_module(text_)
    with pytest.raises(ExecutionError, match="T cannot be found"):
        lower(module["f"], module, WeightStore())


# ---- running


def test_values_are_dropped_after_their_last_use() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    class Watching:
        name: ClassVar[str] = "watching"

        def available(self) -> Answer:
            return Yes()

        def supports(self, op: Op) -> Answer:
            return Yes() if isinstance(op, Unary) else No("watches unary ops")

        def kernel(self, op: Op, weights: Weights) -> Kernel:
            def run(x: torch.Tensor) -> torch.Tensor:
                counts.append(sum(r() is not None for r in alive))
                out = x.neg()
                alive.append(weakref.ref(out))
                return out

            return run

    counts: list[int] = []
    x = Value(Bench().x(4).type, "x")
    ops: list[Op] = []
    for _ in range(6):
        ops.append(Unary(ops[-1].result if ops else x, "neg"))
    with installed(Watching()):
        bench = Bench()
        bench.params, bench.inputs = [x], [torch.ones(4)]
        (found,) = bench.run(*ops, backends=["watching"])
    gc.collect()
    assert found.tolist() == [1.0] * 4
    assert max(counts) == 1  # only the operand of each op is alive when it runs


def test_a_program_can_be_timed(decoder: tuple[Module, WeightStore]) -> None:
    module, store = decoder
    program = lower(module["step"], module, store)
    inputs = [torch.ones(1, 1).long(), torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), None]
    plain = program(*inputs, *empty(1), torch.zeros(1, 1).long())
    (logits, *_), timing = program.timed(*inputs, *empty(1), torch.zeros(1, 1).long())
    assert torch.equal(logits, plain[0])
    assert timing.calls["linear (cpu)"] == 5
    assert timing.calls.total() == len(program.instructions)
    assert 0 < timing.seconds.total() < program.seconds
    assert program.calls == 2


def test_the_callers_inputs_and_weights_are_not_changed(
    decoder: tuple[Module, WeightStore],
) -> None:
    module, store = decoder
    names = list(store)
    before = {name: store.source(name).load().clone() for name in names}
    states = empty(2)
    ids = torch.randint(0, 40, (2, 5))
    program = lower(module["step"], module, store)
    copy = ids.clone()
    first = step(program, ids, states, 0, [4])[0]
    assert torch.equal(ids, copy)
    assert torch.equal(first, step(program, ids, states, 0, [4])[0])
    assert all(torch.equal(store.source(n).load(), before[n]) for n in names)


# ---- who runs what


@contextmanager
def installed(made: Any) -> Iterator[None]:
    """Let another package bring a backend while a test runs."""
    point = EntryPoint(made.name, "tests.backends.third_party:make", protocol.GROUP)
    third_party.MADE = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "entry_points", lambda group: [point])
        yield
    backend.cache_clear()


class Picky:
    """Takes additions only; for others it has a reason."""

    name: ClassVar[str] = "picky"
    where: Answer = Yes()

    def available(self) -> Answer:
        return self.where

    def supports(self, op: Op) -> Answer:
        return Yes() if isinstance(op, Add) else No(f"{op.kind} is beneath it")

    def kernel(self, op: Op, weights: Weights) -> Kernel:
        return lambda a, b: a + b + 1000


@pytest.fixture
def picky() -> Iterator[Picky]:
    made = Picky()
    with installed(made):
        yield made


def test_an_op_goes_to_the_first_backend_that_takes_it(picky: Picky) -> None:
    bench = Bench()
    x = bench.data(torch.ones(3), 3)
    total = Add(x, x)
    program = bench.lower(total, Mul(total.result, 2.0), backends=["picky", "cpu"])
    assert program(*bench.inputs)[0].tolist() == [2004.0] * 3
    first, second = program.assignment
    assert (first.kind, first.backend, first.refused) == ("add", "picky", ())
    assert second.backend == "reference"
    assert dict(second.refused)["picky"] == "mul is beneath it"


def test_a_fused_op_is_taken_apart_for_a_backend_that_takes_a_part(picky: Picky) -> None:
    bench = Bench()
    x, y, w = bench.data(torch.ones(1, 4), 1, 4), bench.data(torch.ones(1, 4), 1, 4), bench.w(4)
    op = AddNorm(x, y, w)
    program = bench.lower(op, backends=["picky"])
    assert [a.backend for a in program.assignment] == ["decomposed", "picky", "reference"]
    total, normed = program(*bench.inputs)
    assert total.tolist() == [[1002.0] * 4]
    torch.testing.assert_close(normed, bench.weights["w0"][None], atol=1e-4, rtol=1e-4)


def test_a_fused_op_is_whole_when_no_backend_takes_a_part() -> None:
    bench = Bench()
    x, w = bench.x(1, 4), bench.w(4)
    (assignment,) = bench.lower(AddNorm(x, x, w), backends=["reference"]).assignment
    assert (assignment.kind, assignment.backend) == ("add_norm", "reference")


def test_a_backend_that_cannot_run_here_is_refused(picky: Picky) -> None:
    picky.where = No("there is no such device")
    bench = Bench()
    x = bench.x(3)
    with pytest.raises(BackendError, match=r"no such device; leave it out of backends="):
        bench.lower(Add(x, x), backends=["picky"])


def test_an_unknown_backend_is_refused_with_the_nearest_name() -> None:
    bench = Bench()
    x = bench.x(3)
    with pytest.raises(BackendError, match="did you mean 'reference'"):
        bench.lower(Add(x, x), backends=["refrence"])


def test_two_backends_of_one_name_are_refused() -> None:
    made = Picky()
    made.name = "cpu"  # type: ignore[misc]
    with installed(made), pytest.raises(BackendError, match="two packages bring a backend 'cpu'"):
        backend_names()


def test_backends_are_listed_with_their_places() -> None:
    assert set(backend_names()) >= {"cpu", "reference"}
    assert all(backend(name).name == name for name in ("cpu", "reference"))


def test_a_program_without_ops_returns_its_inputs() -> None:
    bench = Bench()
    x = bench.x("B", 3)
    region = Region((x,), (), (x,))
    assert region.ops == ()
    program = bench.lower(backends=["reference"], results=[x])
    assert program(bench.inputs[0])[0] is bench.inputs[0]
