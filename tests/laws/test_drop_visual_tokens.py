"""drop-visual-tokens: the laws over towers, HiRED by hand, planted patches, where it stops."""

from fractions import Fraction
from math import floor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.utils.flop_counter import FlopCounterMode

from elidir.backends import WeightStore, lower
from elidir.cost_models import Sizes, work_of
from elidir.cost_models.work import sum_work
from elidir.ir import Attention, DType, Linear, Module, ScoreAttention, flatten
from elidir.passes import Applied, Pipeline, PipelineError
from elidir.passes.token_pruning.drop_visual_tokens import DropVisualTokens
from tests.frontends.families import family
from tests.laws import towers
from tests.laws.test_laws import run
from tests.laws.towers import PARTS, PATCH, SIDE, TOKENS, PlainViT, Seen, made, pictures, tower

TOWERS = ["clip", "siglip", "plain"]
VARIANTS = ["paper", "code"]
WHOLE = PARTS * TOKENS


def kept(known: Seen, pixels: Tensor, **options: Any) -> list[list[int]]:
    """Where the tokens stood that are left of each picture."""
    return known.outputs(known.run(**options).module, pixels)[1].tolist()


# ---- HiRED by hand


def looked_at(known: Seen, pixels: Tensor, layer: int, *, by_all: bool = False) -> Tensor:
    """What each patch gets of a layer's class token, or of all tokens: [images, parts, N]."""
    weights = known.model.looks(pixels).attentions[layer].sum(1)
    front = weights.shape[-1] - TOKENS
    found = weights[:, :, front:].sum(1) if by_all or not front else weights[:, 0, front:]
    return found.unflatten(0, (-1, PARTS))


def budgets(whole: Tensor, rate: float, alpha: float, variant: str) -> list[int]:
    """Tokens of each partition of one picture, by the attention [N] in the whole of it."""
    side = SIDE // PATCH
    total = floor(Fraction(str(rate)) * WHOLE)
    first = min(floor(Fraction(str(alpha)) * total), TOKENS)
    if variant == "paper":
        rows = whole.view(side, side)
        half = side // 2
        blocks = [rows[r : r + half, c : c + half] for r in (0, half) for c in (0, half)]
        shares = [float(block.sum()) for block in blocks]
    else:
        bright = floor((1 - Fraction(str(alpha))) * TOKENS)
        marks = torch.zeros(TOKENS)
        marks[whole.topk(bright).indices] = 1
        shares = [float(band.sum()) for band in marks.view(4, TOKENS // 4)]
    due = [(total - first) * share / sum(shares) for share in shares]
    found = [min(floor(x), TOKENS) for x in due]
    while sum(found) < min(total - first, 4 * TOKENS):  # what floors and full partitions leave over
        open_ = [p for p in range(4) if found[p] < TOKENS]
        found[max(open_, key=lambda p: due[p] - found[p])] += 1
    return [total - sum(found), *found]


def by_hand(
    known: Seen, pixels: Tensor, variant: str, rate: float, alpha: float, *, by_all: bool = False
) -> list[list[int]]:
    """The tokens of each picture that HiRED keeps."""
    late = 2 if known.model.__class__ is not PlainViT else 1
    first, last = (looked_at(known, pixels, layer, by_all=by_all) for layer in (0, late))
    rows = []
    for seen, scores in zip(first, last, strict=True):
        counts = budgets(seen[0], rate, alpha, variant)
        best = [scores[p].topk(n).indices + p * TOKENS for p, n in enumerate(counts)]
        rows.append(torch.cat(best).sort().values.tolist())
    return rows


@pytest.mark.parametrize(("rate", "alpha"), [(0.2, 0.5), (0.4, 0.3), (0.1, 0.8), (0.7, 0.25)])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TOWERS)
def test_it_keeps_what_hired_by_hand_keeps(
    name: str, variant: str, rate: float, alpha: float
) -> None:
    known, pixels = tower(name), pictures(3, seed=1)
    with torch.no_grad():
        wanted = by_hand(known, pixels, variant, rate, alpha)
    assert kept(known, pixels, rate=rate, alpha=alpha, variant=variant) == wanted


@pytest.mark.parametrize("name", TOWERS)
def test_any_tower_may_be_asked_what_its_patches_receive(name: str) -> None:
    known, pixels = tower(name), pictures(3, seed=1)
    with torch.no_grad():
        wanted = by_hand(known, pixels, "paper", 0.3, 0.5, by_all=True)
    assert kept(known, pixels, rate=0.3, scorer="received") == wanted


def test_a_class_token_that_is_not_there_is_said() -> None:
    found = tower("siglip").run(scorer="class-token")
    assert found.missed[0].reason == "the tower has no class token; give scorer=received"


# ---- the laws


@pytest.mark.parametrize("name", TOWERS)
def test_neutral_changes_nothing(name: str) -> None:
    known = tower(name)
    assert known.run(**DropVisualTokens.neutral).module is known.module


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TOWERS)
def test_the_weakest_change_gives_the_dense_outputs(name: str, variant: str) -> None:
    known, pixels = tower(name), pictures(2)
    module = known.run(**DropVisualTokens.identity, variant=variant).module
    assert module is not known.module
    features, index = known.outputs(module, pixels)
    dense = known.outputs(known.module, pixels)[0]
    assert index.tolist() == [list(range(WHOLE))] * 2
    torch.testing.assert_close(features, dense.reshape(2, WHOLE, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_a_choice_before_the_projector_gives_what_one_behind_it_does(name: str) -> None:
    known, pixels = tower(name), pictures(3)
    found = known.run(rate=0.2)
    features, index = known.outputs(found.module, pixels)
    dense = known.outputs(known.module, pixels)[0].view(3, WHOLE, -1)
    behind = dense.gather(1, index[:, :, None].expand(-1, -1, dense.shape[2]))
    torch.testing.assert_close(features, behind, atol=1e-5, rtol=1e-5)
    assert not found.missed
    count = floor(WHOLE * 0.2)
    ops = flatten(found.module["forward"]).ops
    behind_attention = ops[max(i for i, op in enumerate(ops) if isinstance(op, Attention)) :]
    linear = [op.result.type.dims[1] for op in behind_attention if isinstance(op, Linear)]
    assert len(linear) >= 2
    assert set(linear) == {count}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rate", [0.004, 0.1, 0.33, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_budgets_are_exact(rate: float, alpha: float, variant: str) -> None:
    total = floor(Fraction(str(rate)) * WHOLE)
    if not total:
        return
    rows = kept(tower("clip"), pictures(3), rate=rate, alpha=alpha, variant=variant)
    for row in rows:
        assert row == sorted(set(row))
        assert len(row) == total
        first = min(floor(Fraction(str(alpha)) * total), TOKENS)
        assert sum(i < TOKENS for i in row) == max(first, total - (WHOLE - TOKENS))


@pytest.mark.parametrize("name", TOWERS)
def test_pictures_are_independent(name: str) -> None:
    known, pixels = tower(name), pictures(3)
    module = known.run(rate=0.3).module
    both = known.outputs(module, pixels)
    for i in range(3):
        alone = known.outputs(module, pixels[i : i + 1])
        assert alone[1].tolist() == both[1][i : i + 1].tolist()
        torch.testing.assert_close(alone[0], both[0][i : i + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("late", [0, 1])
def test_an_earlier_layer_may_decide(late: int) -> None:
    known, pixels = tower("clip"), pictures(2)
    features, index = known.outputs(known.run(rate=0.2, late=late, first=late).module, pixels)
    with torch.no_grad():
        scores = looked_at(known, pixels, late)
    for row, seen in zip(index.tolist(), scores, strict=True):
        counts = budgets(seen[0], 0.2, 0.5, "paper")
        wanted = [seen[p].topk(n).indices + p * TOKENS for p, n in enumerate(counts)]
        assert row == torch.cat(wanted).sort().values.tolist()
    dense = known.outputs(known.module, pixels)[0].reshape(2, WHOLE, -1)
    behind = dense.gather(1, index[:, :, None].expand(-1, -1, dense.shape[2]))
    torch.testing.assert_close(features, behind, atol=1e-5, rtol=1e-5)


# ---- other shapes of pictures


def test_partitions_may_stand_one_behind_the_other() -> None:
    known, pixels = tower("clip"), pictures(2)
    flat = towers.raised(made("clip"), pixels.flatten(0, 1), dynamic=False)
    module = flat.run(rate=0.3, partitions=PARTS).module
    wanted = known.outputs(known.run(rate=0.3).module, pixels)
    for found, want in zip(flat.outputs(module, pixels.flatten(0, 1)), wanted, strict=True):
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


def test_pictures_of_one_partition_have_the_whole_budget() -> None:
    pixels = pictures(2)[:, 0]
    known = towers.raised(made("clip"), pixels)
    _, index = known.outputs(known.run(rate=0.25).module, pixels)
    with torch.no_grad():
        weights = known.model.looks(pixels[:, None]).attentions[2].sum(1)[:, 0, 1:]
    assert index.tolist() == weights.topk(9).indices.sort().values.tolist()


def test_sub_images_may_lie_in_a_row() -> None:
    pixels = pictures(2)[:, :4]
    known = towers.raised(made("clip"), pixels)
    assert "give their rows and columns" in known.run(rate=0.25).missed[0].reason
    for grid in ((1, 3), (3, 1)):
        _, index = known.outputs(known.run(rate=0.25, grid=grid).module, pixels)
        assert index.shape == (2, TOKENS)


# ---- what it finds


def looker() -> Seen:
    """A tower whose class token looks at bright patches."""
    model = PlainViT(width=8, heads=1, layers=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.embed.weight[0] = 1.0
        model.front[0, 1] = 1.0
        model.qkv[0].weight[0, 1] = 5.0
        model.qkv[0].weight[8, 0] = 1.0
        model.projector.weight[:8] = torch.eye(8)
    return towers.raised(model)


def planted(places: list[tuple[int, int]]) -> Tensor:
    """A picture whose patches at these rows and columns, of 12 by 12, are bright."""
    canvas = torch.zeros(1, 3, 2 * SIDE, 2 * SIDE)
    for row, column in places:
        canvas[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 0.05
    halves = [canvas[:, :, r : r + SIDE, c : c + SIDE] for r in (0, SIDE) for c in (0, SIDE)]
    return torch.stack([avg_pool2d(canvas, 2), *halves], 1)


def patch_of(row: int, column: int) -> int:
    """Where a patch of 12 by 12 stands among the tokens of a picture."""
    part = 1 + 2 * (row // 6) + column // 6
    return part * TOKENS + row % 6 * 6 + column % 6


@pytest.mark.parametrize("seed", range(5))
def test_planted_patches_are_recalled(seed: int) -> None:
    known, draw = looker(), torch.Generator().manual_seed(seed)
    spots = torch.randperm(144, generator=draw)[:6].tolist()
    places = [divmod(spot, 12) for spot in spots]
    for variant in VARIANTS:
        (row,) = kept(known, planted(places), rate=0.3, variant=variant)
        assert {patch_of(*place) for place in places} <= set(row)


def test_the_paper_tells_left_from_right_and_the_code_does_not() -> None:
    known = looker()
    left = planted([(r, c) for r in range(6) for c in range(4)])
    counts = {}
    for variant in VARIANTS:
        (row,) = kept(known, left, rate=0.2, variant=variant)
        counts[variant] = [sum(i // TOKENS == part for i in row) for part in range(1, PARTS)]
    assert counts["paper"][0] > counts["paper"][1]  # the upper left has all that is bright
    assert counts["code"][0] == counts["code"][1] > counts["code"][2]  # bands of rows


# ---- where it stops


class Convolved(nn.Module):
    """A projector that mixes tokens, as many of which come out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(32, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def test_a_projector_that_mixes_tokens_has_all_of_them() -> None:
    model, pixels = made("clip"), pictures(2)
    model.projector = Convolved()
    known = towers.raised(model)
    found = known.run(rate=0.2)
    assert [m.reason for m in found.missed] == [
        "all tokens go through the projector: conv: it mixes tokens"
    ]
    features, index = known.outputs(found.module, pixels)
    dense = known.outputs(known.module, pixels)[0].reshape(2, WHOLE, -1)
    behind = dense.gather(1, index[:, :, None].expand(-1, -1, dense.shape[2]))
    torch.testing.assert_close(features, behind, atol=1e-5, rtol=1e-5)


class Placed(nn.Module):
    """A projector that adds what depends on a token's place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.place = nn.Linear(32, 24), nn.Parameter(torch.randn(1, TOKENS, 24))

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) + self.place).tanh()


def test_places_behind_the_tower_stay_those_of_the_tokens() -> None:
    model, pixels = made("clip"), pictures(2)
    model.projector = Placed()
    known = towers.raised(model)
    features, index = known.outputs(known.run(rate=0.2).module, pixels)
    dense = known.outputs(known.module, pixels)[0].reshape(2, WHOLE, -1)
    behind = dense.gather(1, index[:, :, None].expand(-1, -1, dense.shape[2]))
    torch.testing.assert_close(features, behind, atol=1e-5, rtol=1e-5)


def test_attention_stays_fused_and_is_read_twice() -> None:
    module = tower("clip").run(rate=0.2).module
    ops = flatten(module["forward"]).ops
    assert sum(isinstance(op, Attention) for op in ops) == 3
    rows = [op.q.type.dims[2] for op in ops if isinstance(op, ScoreAttention)]
    assert rows == [1, 1]


def test_a_tower_without_a_class_token_is_said_to_have_none() -> None:
    said = [r.what for r in tower("siglip").run(rate=0.2).remarks if isinstance(r, Applied)]
    assert "the tower has no class token: by the attention each receives" in said


def test_a_language_model_has_no_pictures() -> None:
    found = run(family("llama"), "drop-visual-tokens", {"rate": 0.2})
    assert found.module is family("llama").stepped.module
    assert [m.reason for m in found.missed] == ["it reads ids, and no pictures"]


def test_a_second_run_says_that_there_is_nothing_left_to_choose_among() -> None:
    known = tower("clip")
    module = known.run(rate=0.2).module
    again = Pipeline((DropVisualTokens(),)).run(module)
    assert again.module is module
    assert "is not a row of tokens for each" in again.missed[0].reason


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"late": 3}, "the tower has layers 0 to 2 before its features"),
        ({"rate": 0.001}, "keeps none of 180 tokens"),
    ],
)
def test_what_the_tower_does_not_have_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineError) as caught:
        tower("clip").run(**options)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"partitions": 4}, "its pictures have 5 partitions, not 4"),
        ({"grid": (1, 3)}, "4 sub-images are no 1 by 3"),
        ({"grid": (1, 4)}, "have no whole number of the 6 by 6 patches"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], says: str) -> None:
    found = tower("clip").run(**options)
    assert found.module is tower("clip").module
    assert says in found.missed[0].reason


@pytest.mark.parametrize(
    "options",
    [{"rate": 0.0}, {"rate": 1.5}, {"alpha": -0.1}, {"variant": "both"}, {"grid": (0, 2)}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PipelineError):
        DropVisualTokens(**options)


@pytest.mark.parametrize("partitions", [3, 4])
def test_partitions_that_are_no_whole_pictures_are_said(partitions: int) -> None:
    pixels = pictures(2).flatten(0, 1)
    for dynamic, rows in ((False, "10"), (True, "B")):
        found = towers.raised(made("clip"), pixels, dynamic=dynamic).run(partitions=partitions)
        assert f"{rows} partitions need not be a multiple of {partitions}" in found.missed[0].reason


# ---- cost


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_the_cost_model_counts_the_products_that_run(rate: float) -> None:
    known = tower("plain")
    module = known.run(rate=rate).module
    with FlopCounterMode(display=False) as counter:
        known.outputs(module, pictures(2))
    assert counter.get_total_flops() == products(module)


def products(module: Module) -> float:
    """Products of two pictures by the cost model, but for those of fused attention.

    Torch counts that on no processor.
    """
    ops = [op for op in flatten(module["forward"]).ops if not isinstance(op, Attention)]
    work = sum_work(work_of(op, Sizes()) for op in ops).evaluate({"B": 2})
    return sum(n for kind, n in work.flops.items() if kind.unit == "matrix")


def test_it_runs_in_bfloat16() -> None:
    known, pixels = tower("clip"), pictures(2)
    module = known.run(rate=0.5).module
    store = WeightStore(known.raised.tensors)
    program = lower(module["forward"], module, store, ("cpu", "reference"), DType.BF16)
    features, index = program(pixels.bfloat16())
    dense = known.outputs(known.module, pixels)[0].reshape(2, WHOLE, -1)
    wanted = dense.gather(1, index[:, :, None].expand(-1, -1, dense.shape[2]))
    torch.testing.assert_close(features.float(), wanted, atol=0.1, rtol=0.1)
