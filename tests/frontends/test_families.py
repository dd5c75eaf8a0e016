"""The named families: raised, equal to eager, cached, and the same after every exact pass.

Each is captured at one batch and length and run at others, with left padding where the model takes
any. The oracle of `@step` is the forward over the whole of each row, without padding; the oracle of
the passes is the module as raised.
"""

import pytest
import torch
from torch import Tensor

from elidir.ir import Attention, Op, Region, format_module, parse_module, verify
from elidir.passes import Applied
from tests.frontends.families import (
    CAUSAL,
    Family,
    arguments,
    at_valid,
    eager,
    executable,
    family,
    flat,
    of_kind,
    session,
    whole,
)
from tests.zoo import NAMED, tokens

SIZES = [(2, 11), (1, 5)]
LAYERS = 2
CHUNKS = (5, 1, 1, 3, 1)
LENGTH = sum(CHUNKS)

# What each family is made of, among the kinds that name a structure.
TOLD = {"rope", "ffn.experts", "bias.alibi", "mask.causal", "mask.valid", "mask.window"}
TOLD |= {"norm.rms", "norm.layer"}
DECODER = {"mask.causal", "mask.valid"}
LLAMA = DECODER | {"rope", "norm.rms"}
MADE_OF = {
    "llama": LLAMA,
    "mistral": LLAMA | {"mask.window"},
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "phi": DECODER | {"rope", "norm.layer"},
    "gpt2": DECODER | {"norm.layer"},
    "gpt_neox": DECODER | {"rope", "norm.layer"},
    "opt": DECODER | {"norm.layer"},
    "bloom": DECODER | {"bias.alibi", "norm.layer"},
    "falcon": DECODER | {"rope", "norm.layer"},
    "mixtral": LLAMA | {"ffn.experts"},
    "bert": {"mask.valid", "norm.layer"},
    "vit": {"norm.layer"},
    "plain_triangle": {"mask.causal", "norm.layer"},
    "plain_fused": {"mask.causal", "rope", "norm.rms"},
    "plain_parallel": {"mask.causal", "norm.layer"},
}

every = pytest.mark.parametrize("name", NAMED)
causal = pytest.mark.parametrize("name", CAUSAL)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


# ---- raised


@every
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_raised_forward_equals_eager(name: str, size: tuple[int, int]) -> None:
    known = family(name)
    inputs = known.entry.example(*size)
    wanted = eager(known.model, inputs)
    found = known.forward(*arguments(known, inputs))
    for mine, theirs in zip(found, wanted, strict=True):
        close(at_valid(mine, inputs), at_valid(theirs, inputs))


@every
def test_layers_share_one_body(name: str) -> None:
    module = family(name).module
    layers = list(module.layers())
    assert len(layers) == LAYERS
    assert [layer.scope for layer in layers] == [f"layers.{i}" for i in range(LAYERS)]
    assert len(module.bodies) == 1
    bodies = {id(layer.body) for layer in layers}
    assert len(bodies) == 1


@every
def test_every_attention_is_in_a_layer(name: str) -> None:
    module = family(name).module
    assert len(of_kind(flat(module), "attention")) == LAYERS
    assert not of_kind(module["forward"].region, "attention")


@every
def test_softmax_is_left_in_routers_only(name: str) -> None:
    region = flat(family(name).module)
    for softmax in of_kind(region, "softmax"):
        assert "ffn.experts" in kinds_behind(region, softmax)
    assert bool(of_kind(region, "softmax")) == (name == "mixtral")


def kinds_behind(region: Region, op: Op) -> set[str]:
    """The kinds of the ops that read an op's results, directly or not."""
    reached, kinds = set(op.results), set()
    for other in region.ops:
        if reached & set(other.operands()):
            reached |= set(other.results)
            kinds.add(other.kind)
    return kinds


@every
def test_nothing_is_opaque(name: str) -> None:
    assert not of_kind(flat(family(name).module), "opaque")


@every
def test_the_family_is_made_of(name: str) -> None:
    found = {op.kind for op in flat(family(name).module).ops}
    assert found & TOLD == MADE_OF[name]


@every
def test_attention_reads_key_heads_before_they_are_repeated(name: str) -> None:
    (*_, op) = of_kind(flat(family(name).module), "attention")
    assert isinstance(op, Attention)
    few = {"llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "mixtral"}
    wanted = 1 if name == "falcon" else 2 if name in few else 4
    assert (op.q.type.dims[1], op.k.type.dims[1], op.v.type.dims[1]) == (4, wanted, wanted)


@every
def test_text_round_trip(name: str) -> None:
    known = family(name)
    for module in (known.module, known.stepped.module, known.lossless[0].module):
        text = format_module(module)
        again = parse_module(text)
        assert format_module(again) == text
        verify(again)


@every
def test_weights_are_the_models_own(name: str) -> None:
    """Arrays that have a parameter's name are that parameter, not a copy; most have one."""
    known = family(name)
    own = dict(known.model.named_parameters(remove_duplicate=False))
    stored = {known.raised.origins.get(n, n): t.data_ptr() for n, t in known.raised.tensors.items()}
    shared = [n for n in stored if n in own]
    assert all(stored[n] == own[n].data_ptr() for n in shared)
    assert 2 * len(shared) > len(stored)


# ---- with a cache


@every
def test_incrementalize_says_what_it_did(name: str) -> None:
    result = family(name).stepped
    applied = [r for r in result.remarks if isinstance(r, Applied)]
    assert ("step" in result.module.functions) == (name in CAUSAL) == bool(applied)
    if applied:
        assert [r.what for r in applied] == [f"{LAYERS} caches"]
        assert not result.missed
    text = "\n".join(map(str, result.missed))
    assert name != "bert" or "attention: its mask is not causal" in text
    assert name != "vit" or "it reads pixel_values, not token ids alone" in text


@causal
@pytest.mark.parametrize("chunks", [(LENGTH,), (1,) * 4, CHUNKS], ids=str)
def test_chunks_equal_the_whole(name: str, chunks: tuple[int, ...]) -> None:
    known = family(name)
    ids = tokens(2, sum(chunks))
    live = session(known, known.stepped.module, 2)
    found = torch.cat([live.feed(part) for part in ids.split(list(chunks), dim=1)], dim=1)
    close(found, torch.stack([whole(known, row) for row in ids]))


@causal
def test_left_padded_rows_equal_themselves_alone(name: str) -> None:
    known = family(name)
    ids, pads = tokens(3, LENGTH), (0, 3, 6)
    valid = torch.arange(LENGTH)[None] >= torch.tensor(pads)[:, None]
    live = session(known, known.stepped.module, 3)
    parts = zip(ids.split(list(CHUNKS), dim=1), valid.split(list(CHUNKS), dim=1), strict=True)
    found = torch.cat([live.feed(*part) for part in parts], dim=1)
    for row, pad in enumerate(pads):
        close(found[row, pad:], whole(known, ids[row, pad:]))


@causal
def test_a_second_turn_after_a_draft(name: str) -> None:
    """Prefill, two rows of a draft, part of it kept, and the next turn over the same cache."""
    known = family(name)
    ids = tokens(2, LENGTH)
    live = session(known, known.stepped.module, 2)
    last = live.feed(ids[:, :6], rows=[5])
    draft = torch.cat([ids[:, 6:8], tokens(2, 2, seed=5)], dim=1)
    checked = live.feed(draft, rows=[1, 3])
    live.accept([0, 1])
    turn = live.feed(ids[:, 8:])
    for row in range(2):
        logits = whole(known, ids[row])
        close(last[row], logits[5:6])
        close(turn[row], logits[8:])
        drafted = whole(known, torch.cat([ids[row, :6], draft[row]]))
        close(checked[row], drafted[[7, 9]])


@causal
def test_branches_of_a_draft_do_not_see_each_other(name: str) -> None:
    known = family(name)
    ids, tree = tokens(1, 6), tokens(1, 4, seed=3)
    live = session(known, known.stepped.module, 1)
    live.feed(ids)
    found = live.feed(tree, parents=[-1, 0, 0, 1])[0]
    for path in ([0, 1, 3], [0, 2]):
        wanted = whole(known, torch.cat([ids[0], tree[0, path]]))
        close(found[path], wanted[6:])
    live.accept([0, 2])
    after = live.feed(ids[:, :2])[0]
    close(after, whole(known, torch.cat([ids[0], tree[0, [0, 2]], ids[0, :2]]))[8:])


# ---- the exact passes


@every
def test_each_exact_pass_keeps_the_outputs(name: str) -> None:
    known = family(name)
    inputs = known.entry.example(3, 6)
    given = arguments(known, inputs)
    wanted = known.forward(*given)
    _, history = known.lossless
    assert len(history) > 1
    for _, module in history[1:]:
        same(known, executable(known, module)(*given), wanted, inputs)


@every
def test_lossless_on_the_cpu_backend(name: str) -> None:
    known = family(name)
    inputs = known.entry.example(2, 9)
    given = arguments(known, inputs)
    fast = executable(known, known.lossless[0].module, backends=("cpu",))
    same(known, fast(*given), known.forward(*given), inputs)


def same(
    known: Family, found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], inputs: dict
) -> None:
    """Outputs agree where padding does not decide."""
    for mine, theirs in zip(found, wanted, strict=True):
        close(at_valid(mine, inputs), at_valid(theirs, inputs))


@causal
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_lossless_keeps_the_step(name: str, backend: str) -> None:
    known = family(name)
    ids, pads = tokens(2, LENGTH), (0, 2)
    valid = torch.arange(LENGTH)[None] >= torch.tensor(pads)[:, None]
    live = session(known, known.lossless[0].module, 2, backend)
    parts = zip(ids.split(list(CHUNKS), dim=1), valid.split(list(CHUNKS), dim=1), strict=True)
    found = torch.cat([live.feed(*part) for part in parts], dim=1)
    for row, pad in enumerate(pads):
        close(found[row, pad:], whole(known, ids[row, pad:]))
