"""Saved models answer as before, to the bit, in a process that has neither transformers nor them.

Models of every kind are saved and loaded; what goes wrong with files is in tests/frontends.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import elidir
from elidir.frontends import Storage
from elidir.ir import ElidirError
from tests.cli.conftest import byte_tokenizer
from tests.zoo import NAMED, OTHERS, tokens

LLAMA = NAMED["llama"]


@pytest.fixture(scope="module")
def fast() -> elidir.Compiled:
    """A tiny model of transformers, compiled."""
    return elidir.compile(LLAMA.factory())


def reloaded(fast: elidir.Compiled, path: Path) -> elidir.Compiled:
    fast.save(path)
    return elidir.load(path)


def same(found: Any, wanted: Any) -> None:
    """Two outputs are of one structure, and equal to the bit."""
    (flat, spec), (other, other_spec) = map(torch.utils._pytree.tree_flatten, (found, wanted))
    assert spec == other_spec
    assert all(torch.equal(a, b) for a, b in zip(flat, other, strict=True))


KINDS = [
    *("gpt2", "mixtral", "bert", "vit"),  # experts, an encoder, one that reads pixels
    *("plain_fused", "plain_parallel", "t5"),  # tied, derived, a dict, a pair
]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_answers_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    entry = NAMED.get(name) or OTHERS[name]
    example = entry.example(2, 9) if entry.needs_example else None
    fast = elidir.compile(entry.factory(), example_inputs=example)
    made = reloaded(fast, tmp_path / "model")
    inputs = entry.example(3, 7)
    same(made(**inputs), fast(**inputs))
    assert made.ir == fast.ir
    assert made.history == fast.history
    assert made.stats["stored_bytes"] == fast.stats["stored_bytes"]
    if entry.causal:
        ids, options = tokens(2, 5), {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(made.generate(ids, **options), fast.generate(ids, **options))


@pytest.mark.parametrize(("dtype", "asked"), [("bfloat16", True), ("float16", False)])
def test_dtypes_are_kept(dtype: str, asked: bool, tmp_path: Path) -> None:
    """That of a model, and one that compile was asked for."""
    kind = getattr(torch, dtype)
    model = LLAMA.factory()
    fast = elidir.compile(model, dtype=kind) if asked else elidir.compile(model.to(kind))
    made = reloaded(fast, tmp_path / "model")
    inputs = LLAMA.example(2, 5)
    assert made(**inputs).logits.dtype == kind
    same(made(**inputs), fast(**inputs))
    assert made.program.options.dtype == fast.program.options.dtype


def test_static_sizes_are_kept(tmp_path: Path) -> None:
    fast = elidir.compile(LLAMA.factory(), static=(1, 16))
    made = reloaded(fast, tmp_path / "model")
    assert made.program.options.static == (1, 16)
    ids = tokens(2, 5)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(made.generate(ids, **options), fast.generate(ids, **options))


def test_a_function_and_weights_that_share_memory(tmp_path: Path) -> None:
    base = torch.randn(6, 4)

    def program(x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return x @ base.t(), [x @ base[:4], x + 1]

    x = torch.randn(3, 4)
    fast = elidir.compile(program, example_inputs=(x,))
    same(reloaded(fast, tmp_path / "model")(x), fast(x))


def test_a_model_saved_again_is_the_same(fast: elidir.Compiled, tmp_path: Path) -> None:
    once = reloaded(fast, tmp_path / "once")
    twice = reloaded(once, tmp_path / "twice")
    names = {p.name for p in (tmp_path / "once").iterdir()}
    for name in names - {"elidir.json"}:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    same(twice(**LLAMA.example(1, 5)), once(**LLAMA.example(1, 5)))
    assert twice.explain().partition("@forward")[0] == once.explain().partition("@forward")[0]


def test_a_model_may_be_saved_over_the_files_that_it_was_loaded_from(
    fast: elidir.Compiled, tmp_path: Path
) -> None:
    made = reloaded(fast, tmp_path / "model")
    wanted = made(**LLAMA.example(1, 5))
    made.save(tmp_path / "model")
    same(made(**LLAMA.example(1, 5)), wanted)
    same(elidir.load(tmp_path / "model")(**LLAMA.example(1, 5)), wanted)


def test_weights_are_mapped_not_read(fast: elidir.Compiled, tmp_path: Path) -> None:
    made = reloaded(fast, tmp_path / "model")
    file = str(tmp_path / "model" / "weights.safetensors")
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [[int(n, 16) for n in parts[0].split("-")] for parts in lines if parts[-1] == file]
    store = made.program.store
    held = [store.source(n).load() for n in store if store.source(n).load().nbytes % 64 == 0]
    assert len(held) > 10
    for tensor in held:
        assert any(start <= tensor.data_ptr() < end for start, end in spans)
        assert tensor.data_ptr() % 64 == 0


def test_a_model_that_was_never_captured_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ElidirError, match=r"nothing is compiled yet.*call it once"):
        elidir.compile(nn.Linear(4, 4)).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Wrapped(nn.Module):
    """A module whose output is of a class of its own."""

    def forward(self, x: torch.Tensor) -> Any:
        return torch.return_types.max((x + 1, x))  # type: ignore[attr-defined]


def test_an_output_without_a_form_on_disk_is_refused(tmp_path: Path) -> None:
    fast = elidir.compile(Wrapped(), example_inputs=(torch.ones(2),))
    with pytest.raises(ElidirError, match=r"no form on disk.*; return tensors in tuples"):
        fast.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# ---- what goes along


@pytest.mark.parametrize("kind", ["transformers", "elidir"])
def test_a_tokenizer_may_be_given(kind: str, fast: elidir.Compiled, tmp_path: Path) -> None:
    from elidir.frontends import Tokenizer

    theirs = byte_tokenizer()
    given = theirs if kind == "transformers" else Tokenizer.of(theirs)
    fast.save(tmp_path / "model", tokenizer=given)
    made = elidir.load(tmp_path / "model").tokenizer
    assert made.encode("a 言") == theirs("a 言").input_ids
    chat = [{"role": "user", "content": "a"}]
    assert made.chat(chat) == theirs.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


def test_what_is_no_tokenizer_is_refused(fast: elidir.Compiled, tmp_path: Path) -> None:
    with pytest.raises(ElidirError, match="a dict cannot be saved; give a fast tokenizer"):
        fast.save(tmp_path / "model", tokenizer={})


def test_how_it_was_compiled_goes_along(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: a100-80g\nname: mine\n")
    fast = elidir.compile(
        LLAMA.factory(), target=str(mine), pipeline="fuse-add-norm", backend="cpu"
    )
    fast.save(tmp_path / "model")
    mine.unlink()
    made = elidir.load(tmp_path / "model", backend="reference")
    assert made.report().to_json() == fast_report(made)
    assert "fuse-add-norm" in made.program.options.pipeline
    assert made.program.options.backends == ("reference",)
    assert made.program.result.records == fast.program.result.records
    data = json.loads((tmp_path / "model" / "elidir.json").read_text())
    assert data["made"] == {"elidir": elidir.__version__, "torch": torch.__version__}
    with pytest.raises(ElidirError, match="no backend 'cpuu'"):
        elidir.load(tmp_path / "model", backend="cpuu")


def test_where_its_calibration_comes_from_goes_along(tmp_path: Path) -> None:
    ids = torch.randint(4, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    pipeline = "lossless, extract-outliers{fraction=0.2 force=true}"
    fast = elidir.compile(LLAMA.factory(), pipeline=pipeline, calibration=ids)
    made = reloaded(fast, tmp_path / "model")
    source = fast.program.calibration
    assert source.tokens == 32
    assert made.program.calibration == source
    assert torch.equal(made(ids).logits, fast(ids).logits)
    assert f"calibrated on {source}" in made.explain()
    data = json.loads((tmp_path / "model" / "elidir.json").read_text())
    assert data["calibration"] == vars(source)
    plain = reloaded(elidir.compile(LLAMA.factory()), tmp_path / "plain")
    assert plain.program.calibration is None
    with pytest.raises(ElidirError, match="with the calibration it was given; leave calibration"):
        elidir.compile(str(tmp_path / "model"), calibration=ids)


def fast_report(made: elidir.Compiled) -> str:
    """The report on the target that the model was compiled for, named by hand."""
    return made.report([made.program.options.target]).to_json()


def test_blocks_stay_blocks_and_answer_the_same(tmp_path: Path) -> None:
    from elidir.compiled import Compiled
    from elidir.frontends import Options, build

    model = LLAMA.factory()
    half = model.lm_head.weight.detach().half()
    model.lm_head.weight.data = half.float()
    raw = half.view(torch.uint8).numpy().reshape(half.shape[0], -1)
    storages = {"lm_head.weight": Storage("f16", raw, tuple(half.shape))}
    fast = Compiled.of(build(model, Options(), storages=storages))
    made = reloaded(fast, tmp_path / "model")
    same(made(**LLAMA.example(1, 5)), fast(**LLAMA.example(1, 5)))
    assert (tmp_path / "model" / "weights.safetensors").stat().st_size < sum(
        p.nbytes for p in model.parameters()
    )


# ---- without transformers

ALONE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "gguf", "networkx"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import torch, elidir
made = elidir.load(sys.argv[1])
inputs = torch.load(sys.argv[2], weights_only=True)
out = made(**inputs)
assert torch.equal(out.logits, out[0]) and out.logits is out["logits"] and list(out) == ["logits"]
made.save(sys.argv[1])
ids = made.generate(inputs["input_ids"][:1], max_new_tokens=6, do_sample=False)
torch.save((out.logits, ids, made.tokenizer.encode_chat("Hi")), sys.argv[3])
"""


def test_a_process_without_transformers_answers_the_same(
    fast: elidir.Compiled, tmp_path: Path
) -> None:
    fast.save(tmp_path / "model", tokenizer=byte_tokenizer())
    inputs = LLAMA.example(2, 9)
    torch.save(inputs, tmp_path / "in")
    args = [tmp_path / "model", tmp_path / "in", tmp_path / "out"]
    run = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, *map(str, args)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    logits, ids, chat = torch.load(tmp_path / "out", weights_only=True)
    assert torch.equal(logits, fast(**inputs).logits)
    wanted = fast.generate(inputs["input_ids"][:1], max_new_tokens=6, do_sample=False)
    assert torch.equal(ids, wanted)
    made = elidir.load(tmp_path / "model")
    assert chat == made.tokenizer.encode_chat("Hi")
    assert type(made(**inputs)) is type(fast(**inputs))  # saved there, it is transformers' again
