"""Vision-language models as a user has them: called and generating as in transformers."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)

import elidir
from elidir.backends.runtime import Opening
from elidir.backends.runtime import Prompt as Words
from elidir.frontends import NEWLINE, Pictured, program
from elidir.picture_prompt import with_newlines
from elidir.pictures import CompiledPictures

IMAGE, SIDE = 2, 24
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 4,
}
GRIDS = [[48, 48], [24, 48], [72, 24]]


def text(most: int = 1024) -> LlamaConfig:
    """A language model of two layers and so many positions."""
    return LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=most,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )


@functools.cache
def model(name: str, most: int = 1024) -> Any:
    """A tiny model, whose outputs differ much from token to token."""
    torch.manual_seed(0)
    clip, siglip = CLIPVisionConfig(**VISION), SiglipVisionConfig(**VISION, vision_use_head=False)
    common: dict[str, Any] = {"text_config": text(most), "image_token_index": IMAGE}
    if name == "llava_next":
        config = LlavaNextConfig(vision_config=clip, image_grid_pinpoints=GRIDS, **common)
        made: Any = LlavaNextForConditionalGeneration(config)
    elif name == "llava_siglip":
        strategy = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
        made = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=siglip, **strategy, **common)
        )
    else:
        layers = {"vision_feature_layer": [-2, -1]} if name == "llava_layers" else {}
        made = LlavaForConditionalGeneration(LlavaConfig(vision_config=clip, **layers, **common))
    with torch.no_grad():
        for each, weight in made.named_parameters():
            sharp = "language_model" in each and each.endswith(("q_proj.weight", "k_proj.weight"))
            weight.normal_(0, 1.5 if sharp else 0.15)  # or attention heeds no position
    return made.eval()


@pytest.fixture(scope="module", autouse=True)
def captured_once() -> Iterator[None]:
    """Each part of a model is captured once: pipelines differ, the parts do not."""
    known: dict[Any, Any] = {}
    capture = program._captured

    def once(part: Any, options: Any, example: Any) -> Any:
        shapes = tuple(x.shape for x in example or ())
        key = (part, shapes, options.dynamic)
        if key not in known:
            known[key] = capture(part, options, example)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pictured, "of", functools.cache(Pictured.of))
        patch.setattr(program, "_captured", once)
        yield


@functools.cache
def compiled(name: str, pipeline: str = "lossless", target: str = "cpu") -> CompiledPictures:
    """A compiled model, once in each process."""
    made: CompiledPictures = elidir.compile(model(name), pipeline=pipeline, target=target)
    return made


DROP = "drop-visual-tokens{force=true}"
HALF = "drop-visual-tokens{rate=0.5 positions=compact force=true}, lossless"
MODELS = ["llava", "llava_siglip", "llava_layers", "llava_next"]


def asked(name: str, sizes: list[list[int]] | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Two rows of words with a picture in each, padded on the left as their pictures need."""
    random = torch.Generator().manual_seed(seed)
    sizes = [[48, 48], [48, 48]] if sizes is None else sizes
    if name == "llava_next":
        parts = model(name).model
        pixels = torch.randn(2, 5, 3, SIDE, SIDE, generator=random)
        given = {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
        with torch.no_grad():
            found = parts.get_image_features(**given, return_dict=True).pooler_output
        counts = [len(each) for each in found]
    else:
        given = {"pixel_values": torch.randn(2, 3, SIDE, SIDE, generator=random)}
        counts = [36, 36]
    words = torch.randint(3, 60, (2, 7), generator=random)
    rows = [
        [*w[:3].tolist(), *[IMAGE] * n, *w[3:].tolist()] for w, n in zip(words, counts, strict=True)
    ]
    rows[0] = rows[0][1:]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), **given}


def at_words(x: Tensor, given: dict[str, Tensor]) -> Tensor:
    """The rows of an output that are no padding."""
    return x[given["attention_mask"].bool()]


@pytest.mark.parametrize("passes", ["", "drop-visual-tokens{rate=1.0 force=true}, "])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_model_where_nothing_is_dropped(name: str, passes: str) -> None:
    fast, given = compiled(name, f"{passes}lossless"), asked(name)
    with torch.no_grad():
        wanted = model(name)(**given)
    found = fast(**given)
    assert type(found) is type(wanted)
    logits = (at_words(x.logits, given) for x in (found, wanted))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    hidden = wanted.image_hidden_states
    hidden = hidden if isinstance(hidden, Tensor) else torch.cat(list(hidden))
    torch.testing.assert_close(
        found.image_hidden_states, hidden.reshape(-1, hidden.shape[-1]), atol=1e-5, rtol=1e-5
    )
    tokens = (m.generate(**given, max_new_tokens=6, do_sample=False) for m in (fast, model(name)))
    assert torch.equal(*tokens)


@pytest.mark.parametrize(
    "sizes", [[[48, 48], [24, 48]], [[60, 20], [30, 48]], [[20, 48], [48, 33]]]
)
def test_pictures_may_have_other_shapes_and_margins(sizes: list[list[int]]) -> None:
    whole = model("llava_next")
    fast, given = compiled("llava_next"), asked("llava_next", sizes)
    with torch.no_grad():
        wanted = whole(**given)
    logits = (at_words(x.logits, given) for x in (fast(**given), wanted))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    tokens = (m.generate(**given, max_new_tokens=6, do_sample=False) for m in (fast, whole))
    assert torch.equal(*tokens)
    done = fast.stats["generation"]
    assert done["steps"] == 6
    assert done["tokens"] > 6
    assert set(done["layer_tokens"]) == {done["tokens"]}


def by_hand(
    name: str, fast: CompiledPictures, given: dict[str, Tensor], row: int, *, original: bool
) -> Any:
    """The logits of one row by transformers, over the features that are left."""
    whole = model(name)
    seen = fast.features(given["pixel_values"], given.get("image_sizes"))[row]
    kept = set(seen.index.tolist())
    ids = given["input_ids"][row][given["attention_mask"][row].bool()]
    shape = fast.parts.shapes(given.get("image_sizes"), 2)[row]
    size = given["image_sizes"][row].tolist() if "image_sizes" in given else None
    layout = fast.parts.layout(shape, size, 36).tolist()
    embeds, positions, words = [], [], whole.get_input_embeddings()
    place = iter(layout)
    for at, token in enumerate(ids.tolist()):
        if token != IMAGE:
            embeds.append(words(torch.tensor(token)))
        elif (which := next(place)) in kept:
            embeds.append(seen.features[seen.index.tolist().index(which)])
        else:
            continue
        positions.append(at if original else len(positions))
    with torch.no_grad():
        out = whole.model.language_model(
            inputs_embeds=torch.stack(embeds)[None], position_ids=torch.tensor([positions])
        )
        return whole.lm_head(out.last_hidden_state)[0]


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_is_put_into_the_prompt(name: str, positions: str) -> None:
    fast = compiled(
        name, f"drop-visual-tokens{{rate=0.3 positions={positions} force=true}}, lossless"
    )
    given = asked(name, [[48, 48], [40, 48]])
    found, original = fast(**given).logits, positions == "original"
    tokens = fast.generate(**given, max_new_tokens=1)[:, -1]
    for row in range(2):
        wanted = by_hand(name, fast, given, row, original=original)
        torch.testing.assert_close(found[row, -len(wanted) :], wanted, atol=1e-5, rtol=1e-5)
        assert int(tokens[row]) == int(wanted[-1].argmax())


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_each_step_has_the_logits_of_the_whole(positions: str, cached: bool) -> None:
    name, later = "llava_next", torch.tensor([[5, 41, 17, 9, 30], [28, 3, 55, 12, 44]])
    pipeline = f"drop-visual-tokens{{rate=0.3 positions={positions} force=true}}, lossless"
    fast, given = compiled(name, pipeline), asked(name, [[48, 48], [40, 48]])
    more = {n: given[n] for n in ("attention_mask", "image_sizes")}
    prompt = fast._prompt(given["input_ids"], given["pixel_values"], more)
    opening = Opening(Words(prompt.ids, prompt.valid), 100, cached)
    decoder = fast._over(prompt).open(opening)
    decoder.feed(prompt.ids, prompt.valid)
    found = torch.cat([decoder.feed(later[:, i : i + 1]) for i in range(5)], 1)
    whole = given | {
        "input_ids": torch.cat((given["input_ids"], later), 1),
        "attention_mask": torch.cat((given["attention_mask"], torch.ones_like(later)), 1),
    }
    for row in range(2):
        kept, anew = (by_hand(name, fast, whole, row, original=o)[-5:] for o in (True, False))
        wanted, other = (kept, anew) if positions == "original" else (anew, kept)
        torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-5)
        assert float((found[row] - other).abs().amax(-1).min()) > 1e-3


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_rows_are_independent(positions: str) -> None:
    pipeline = f"drop-visual-tokens{{rate=0.2 positions={positions} force=true}}, lossless"
    fast, given = compiled("llava_next", pipeline), asked("llava_next")
    both = fast.generate(**given, max_new_tokens=8)
    for row in range(2):
        alone = {n: x[row : row + 1] for n, x in given.items()}
        valid = alone["attention_mask"][0].bool()
        alone |= {n: alone[n][:, valid] for n in ("input_ids", "attention_mask")}
        assert torch.equal(fast.generate(**alone, max_new_tokens=8)[0, -8:], both[row, -8:])


@pytest.mark.parametrize("other", ["prune-tokens{keep=0.5 at_least=8}", "evict-kv{at_least=8}"])
def test_it_composes_with_passes_on_the_language_model(other: str) -> None:
    given = asked("llava_next")
    for pipeline in (f"{DROP}, {other}", f"{other}, {DROP}"):
        fast = compiled("llava_next", pipeline)
        tokens = fast.generate(**given, max_new_tokens=6)
        alone = {n: x[1:] for n, x in given.items()}
        assert torch.equal(fast.generate(**alone, max_new_tokens=6)[0], tokens[1])
        assert "@prefill" in fast.explain()


def test_merging_in_the_tower_comes_after() -> None:
    fast = compiled("llava", f"{DROP}, merge-tokens{{share=0.2 force=true}}")
    assert fast.features(asked("llava")["pixel_values"])[0].features.shape == (7, 32)
    refused = compiled("llava", f"merge-tokens{{share=0.2 force=true}}, {DROP}")
    assert "which comes from which is not known" in refused.explain()


def test_a_prompt_in_chunks_and_without_a_cache() -> None:
    given = asked("llava_next")
    for pipeline in (HALF, "drop-visual-tokens{rate=0.5 force=true}, lossless"):
        fast = compiled("llava_next", pipeline)
        wanted = fast.generate(**given, max_new_tokens=6)
        for options in ({"prefill_chunk_size": 20}, {"use_cache": False}):
            assert torch.equal(fast.generate(**given, max_new_tokens=6, **options), wanted)


def test_partitions_may_come_one_behind_the_other_and_without_a_mask() -> None:
    fast, given = compiled("llava_next"), asked("llava_next")
    wanted = fast.generate(**given, max_new_tokens=4)
    flat = given | {"pixel_values": given["pixel_values"].flatten(0, 1)}
    assert torch.equal(fast.generate(**flat, max_new_tokens=4), wanted)
    del given["attention_mask"]
    assert torch.equal(fast.generate(**given, max_new_tokens=4), wanted)


class Kept:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.got.append(value)

    def end(self) -> None:
        self.got.append(torch.zeros(0))


def test_options_of_generation_mean_the_whole_prompt() -> None:
    fast = compiled("llava", HALF)
    given, streamer = asked("llava"), Kept()
    width = given["input_ids"].shape[1]
    tokens = fast.generate(**given, max_length=width + 5, repetition_penalty=1.3, streamer=streamer)
    assert tokens.shape == (2, width + 5)
    assert torch.equal(streamer.got[0], given["input_ids"])
    assert torch.equal(torch.stack(streamer.got[1:-1], 1), tokens[:, width:])


def test_words_alone_go_on_as_before() -> None:
    fast, ids = compiled("llava"), torch.tensor([[1, 5, 9, 7]])
    with torch.no_grad():
        wanted = model("llava")(input_ids=ids).logits
    torch.testing.assert_close(fast(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(fast.generate(ids, max_new_tokens=4)[:, :4], ids)


def test_in_bfloat16() -> None:
    fast = elidir.compile(model("llava_next"), pipeline=HALF, dtype=torch.bfloat16)
    given = asked("llava_next")
    whole = compiled("llava_next", HALF)
    found, wanted = fast(**given).logits, whole(**given).logits
    assert found.dtype is torch.bfloat16
    assert float(torch.cosine_similarity(found.float()[1], wanted[1], dim=-1).mean()) > 0.98


# ---- where it stops


def test_what_does_not_fit_the_pictures_is_said() -> None:
    fast, given = compiled("llava_next"), asked("llava_next")
    more = torch.cat((given["input_ids"], torch.full((2, 1), IMAGE)), 1)
    longer = given | {"input_ids": more, "attention_mask": None}
    for wrong, says in (
        (given | {"image_sizes": None}, "give image_sizes= of each of the 2 pictures"),
        (longer, "tokens for pictures"),
        (given | {"pixel_values": given["pixel_values"][:, :2]}, "have .5, 5. partitions"),
        (given | {"pixel_values": given["pixel_values"][0, 0]}, "pixels are .pictures, partitions"),
    ):
        with pytest.raises(elidir.ElidirError, match=says):
            fast.generate(**wrong, max_new_tokens=2)


def test_a_prompt_that_fits_with_compact_positions_alone_says_so() -> None:
    whole, given = model("llava_next", 128), asked("llava_next")
    for options in ("rate=0.2", "rate=0.2 force=true"):
        fast = elidir.compile(whole, pipeline=f"drop-visual-tokens{{{options}}}, lossless")
        assert ("positions=compact counts 36 anew" in fast.explain()) == (options == "rate=0.2")
        for run in (fast, functools.partial(fast.generate, max_new_tokens=2)):
            with pytest.raises(
                elidir.ElidirError, match=r"199 positions .* 128.*positions=compact"
            ):
                run(**given)
        with pytest.raises(elidir.ElidirError, match="positions=compact"):
            fast.report("p40", image_size=(48, 48))
    pipeline = "drop-visual-tokens{rate=0.2 positions=compact}, lossless"
    fast = elidir.compile(whole, pipeline=pipeline)
    assert fast.generate(**given, max_new_tokens=2).shape == (2, 201)


@pytest.mark.parametrize("cached", [True, False])
def test_new_tokens_that_have_no_positions_are_refused_before_any_step(cached: bool) -> None:
    fast = elidir.compile(model("llava_next", 210), pipeline=DROP + ", lossless")
    given, streamer = asked("llava_next"), Kept()
    ask = functools.partial(fast.generate, **given, use_cache=cached)
    with pytest.raises(elidir.ElidirError, match="positions for 12 new ones, not 13"):
        ask(max_new_tokens=13, streamer=streamer)
    assert not streamer.got
    assert ask(max_new_tokens=12).shape[1] == 199 + 12


def test_wrong_options_are_said_when_it_is_compiled() -> None:
    with pytest.raises(elidir.ElidirError, match="the tower has layers 0 to 1"):
        compiled("llava_next", "drop-visual-tokens{late=5}")


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_the_report_counts_what_runs(rate: float) -> None:
    pipeline = f"drop-visual-tokens{{rate={rate} force=true}}"
    fast = elidir.compile(model("llava_next"), pipeline=pipeline, backend="reference")
    given = {n: x[1:] for n, x in asked("llava_next").items()}
    with FlopCounterMode(display=False) as counter:
        fast.generate(**given, max_new_tokens=1)
    words = 8  # with the one before the picture
    found = fast.report("a100-80g", prompt=words, new=1, image_size=(48, 48))
    (target,) = found.targets
    assert [p.name for p in target.phases] == ["pictures", "prefill"]
    assert found.prompt == words + (36 if rate < 1 else 192)
    rows = [r for p in target.phases for r in p.rows]
    products = sum(r.flops for r in rows if r.op in ("linear", "conv", "score.attention"))
    assert products == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_the_report_asks_for_what_runs_where_positions_are_few(positions: str) -> None:
    pipeline = f"drop-visual-tokens{{rate=0.2 positions={positions} force=true}}, lossless"
    fast = elidir.compile(model("llava_next", 300), pipeline=pipeline)
    found, given = fast.report("p40", image_size=(48, 48)), asked("llava_next")
    words, new = found.prompt - 36, found.new
    assert (words, new) == ((54, 54) if positions == "original" else (64, 128))
    ids = torch.cat((torch.full((2, words), 5), torch.full((2, 192), IMAGE)), 1)
    given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert fast.generate(**given, max_new_tokens=new).shape[1] == words + 192 + new


def test_the_report_follows_the_passes_of_both_parts() -> None:
    fast = compiled("llava_next", "lossless, drop-visual-tokens{rate=0.2 force=true}")
    found = fast.report(["p40", "a100-80g"], pictures=2)
    assert "72 tokens of the prompt are of pictures, which had 384" in found.to_text()
    for target in found.targets:
        steps = target.waterfall
        assert len({s.target for s in steps}) == 1
        sights = [s for s in steps if s.name.startswith("pictures: drop-visual-tokens")]
        assert len(sights) == 1
        before = steps[steps.index(sights[0]) - 1]
        assert sights[0].decode_seconds < before.decode_seconds
        both = sum(p.seconds for p in target.phases[:2])
        assert steps[-1].prefill_seconds == pytest.approx(both)
        held = {p.memory.weights for p in target.phases}
        assert max(held) < 1.1 * min(held)
        assert target.total.peak_bytes == max(m.memory.total for m in target.timeline)
        assert target.total.seconds > both
    assert "pictures" in found.to_html()
    words = fast.report("p40", pictures=0)
    assert [p.name for p in words.targets[0].phases] == ["prefill", "decode"]


def test_the_report_stands_beside_what_is_measured() -> None:
    found = compiled("llava", HALF).report("cpu", measure=True, new=4)
    assert [c.phase for c in found.targets[0].measured] == ["pictures", "prefill", "decode"]


def test_it_is_refused_where_no_answer_comes_sooner() -> None:
    pipeline = "drop-visual-tokens{rate=0.9}, lossless"
    slow = compiled("llava", pipeline, "a100-80g")
    assert "sees no gain: the first token behind a picture goes from" in slow.explain()
    given = asked("llava")
    tokens = (f.generate(**given, max_new_tokens=4) for f in (slow, compiled("llava")))
    assert torch.equal(*tokens)


def test_a_model_with_pictures_is_not_saved(tmp_path: Any) -> None:
    with pytest.raises(elidir.ElidirError, match="keep the model with its save_pretrained"):
        compiled("llava").save(tmp_path / "model")


def test_of_a_named_one_only_words_are_compiled_which_is_said(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([[1, 5, 9, 7]])
    wanted = compiled("llava")(input_ids=ids).logits
    monkeypatch.setenv("ELIDIR_CACHE", str(tmp_path / "cache"))
    model("llava").save_pretrained(tmp_path / "model")
    fast = elidir.compile(str(tmp_path / "model"), backend="reference")
    assert "give elidir.compile the model itself" in fast.explain()
    torch.testing.assert_close(fast(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)


def test_one_that_makes_features_in_another_way_is_not_taken_apart() -> None:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=text(),
        image_token_index=IMAGE,
        image_grid_pinpoints=GRIDS,
    )
    assert Pictured.of(LlavaOnevisionForConditionalGeneration(config).eval()) is None


def test_a_dropped_token_of_the_whole_picture_takes_no_newline() -> None:
    layout = torch.tensor([0, 1, 2, 3, NEWLINE, 4, 5, NEWLINE])  # two of the whole, rows of two
    places = torch.tensor([0, -1, 1, 2, -1, 3, -1, -1])
    assert with_newlines(places, layout, 9, 2).tolist() == [0, -1, 1, 2, 9, 3, -1, -1]
