"""merge-tokens: the laws over encoders, ToMe written out by hand on a ViT, where it stops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from elidir.backends import WeightStore, lower
from elidir.cost_models import Sizes, work_of
from elidir.cost_models.work import sum_work
from elidir.ir import Attention, DType, Layer, Module, TokensMerge, format_dim
from elidir.passes import Pipeline, PipelineError
from elidir.passes.token_pruning.merge_tokens import MergeTokens
from tests.frontends.families import Family, arguments, eager, executable, family, flat
from tests.laws.test_laws import run
from tests.zoo import Inputs

TEXT = ["bert", "roberta", "distilbert"]
PICTURES = ["vit", "dinov2", "clip_vision_model", "siglip_vision_model"]
LENGTH, SHORT, SHARE = 11, 7, 0.3


def outputs(known: Family, module: Module, inputs: Inputs) -> list[Tensor]:
    """What `@forward` returns."""
    return list(executable(known, module)(*arguments(known, inputs)))


def padded(known: Family, batch: int = 2) -> Inputs:
    """Inputs whose second row ends with padding, if they can."""
    inputs = known.entry.example(batch, LENGTH)
    if "attention_mask" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][1:, SHORT:] = 0
        inputs["input_ids"][1:, SHORT:] = 0
    return inputs


def at_valid(found: Tensor, inputs: Inputs, row: int) -> Tensor:
    """One row of an output, without padding."""
    mask = inputs.get("attention_mask")
    per_token = mask is not None and found.shape[:2] == mask.shape
    return found[row][mask[row].bool()] if per_token else found[row]


@pytest.mark.parametrize("model", TEXT + PICTURES)
def test_neutral_changes_nothing(model: str) -> None:
    known = family(model)
    assert run(known, "merge-tokens", MergeTokens.neutral).module is known.stepped.module


@pytest.mark.parametrize("model", TEXT + PICTURES)
def test_the_weakest_change_gives_the_dense_outputs(model: str) -> None:
    known = family(model)
    made, inputs = run(known, "merge-tokens", MergeTokens.identity).module, padded(known)
    assert merging(made) == 2
    wanted = outputs(known, known.stepped.module, inputs)
    for got, want in zip(outputs(known, made, inputs), wanted, strict=True):
        for row in range(2):
            found, dense = (at_valid(x, inputs, row) for x in (got, want))
            torch.testing.assert_close(found, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", TEXT + PICTURES)
def test_rows_are_independent(model: str) -> None:
    known = family(model)
    made, inputs = run(known, "merge-tokens", {"share": SHARE}).module, padded(known)
    both = outputs(known, made, inputs)
    for row in range(2):
        alone = {n: x[row : row + 1] for n, x in inputs.items()}
        if row and "attention_mask" in alone:
            alone = {n: x[:, :SHORT] for n, x in alone.items()}
        for got, want in zip(both, outputs(known, made, alone), strict=True):
            found = at_valid(got, inputs, row)
            torch.testing.assert_close(found, want[0], atol=1e-5, rtol=1e-5)


def test_padding_may_stand_before_the_tokens() -> None:
    known = family("bert")
    made = run(known, "merge-tokens", {"share": SHARE}).module
    ids, valid = known.entry.example(2, LENGTH)["input_ids"], torch.ones(2, LENGTH).bool()
    valid[1, : LENGTH - SHORT] = False
    pos = (valid.long().cumsum(1) - 1).clamp(min=0)
    both = executable(known, made)(ids, valid, pos)[0]
    short = ids[1:, LENGTH - SHORT :]
    alone = executable(known, made)(short, torch.ones(1, SHORT).bool(), torch.arange(SHORT)[None])
    torch.testing.assert_close(both[1:, LENGTH - SHORT :], alone[0], atol=1e-5, rtol=1e-5)


def merging(module: Module) -> int:
    """In how many layers of `@forward` tokens merge."""
    layers = [op for op in module["forward"].region.ops if isinstance(op, Layer)]
    return sum(any(isinstance(o, TokensMerge) for o in la.body.region.ops) for la in layers)


# ---- ToMe


def match_by_hand(keys: Tensor, fewer: int) -> Tensor:
    """The matrix [K, T] of which tokens go where, for keys [T, D], the first token on its own."""
    tokens = len(keys)
    cosine = F.normalize(keys, dim=-1) @ F.normalize(keys, dim=-1).T
    even, odd = list(range(2, tokens, 2)), list(range(1, tokens, 2))
    best = {a: max(odd, key=lambda b: float(cosine[a, b])) for a in even}
    gone = sorted(even, key=lambda a: -float(cosine[a, best[a]]))[:fewer]
    left = [0, *(a for a in even if a not in gone), *odd]
    matrix = torch.zeros(len(left), tokens)
    for token in range(tokens):
        matrix[left.index(best[token] if token in gone else token), token] = 1
    return matrix


def by_hand(known: Family, pixels: Tensor, share: int) -> Tensor:
    """Logits of one picture with tokens merged in each layer, `share` in tenths."""
    model, base = known.model, known.model.vit
    hidden = base.embeddings(pixels)[0]
    sizes = torch.ones(len(hidden))
    for layer in base.layers:
        normed, own = layer.layernorm_before(hidden), layer.attention
        q, k, v = (
            part(normed).unflatten(-1, (own.config.num_attention_heads, -1)).transpose(0, 1)
            for part in (own.q_proj, own.k_proj, own.v_proj)
        )
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + sizes.log()
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        hidden = hidden + own.o_proj(mixed)
        matrix = match_by_hand(k.mean(0), share * (len(hidden) - 1) // 10)
        merged = matrix @ sizes
        hidden, sizes = matrix @ (hidden * sizes[:, None]) / merged[:, None], merged
        hidden = hidden + layer.mlp(layer.layernorm_after(hidden))
    return model.classifier(base.layernorm(hidden)[:1])


@pytest.mark.parametrize("share", [0, 2, 5])
def test_it_is_tome(share: int) -> None:
    known = family("vit")
    options = {"share": share / 10, "force": True}
    made, inputs = run(known, "merge-tokens", options).module, known.entry.example(3, 1)
    found = outputs(known, made, inputs)[0]
    with torch.no_grad():
        wanted = [by_hand(known, pixels[None], share) for pixels in inputs["pixel_values"]]
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-5, rtol=1e-5)
    if not share:
        torch.testing.assert_close(found, eager(known.model, inputs)[0], atol=1e-5, rtol=1e-5)


# ---- what it leaves, and where it does not act


def test_later_layers_hold_fewer_tokens() -> None:
    made = run(family("vit"), "merge-tokens", {"share": 0.5}).module
    layers = [op for op in made["forward"].region.ops if isinstance(op, Layer)]
    assert [op.inputs[0].type.dims[1] for op in layers] == [17, 9]
    made = run(family("bert"), "merge-tokens", {"share": 0.25}).module
    layers = [op for op in made["forward"].region.ops if isinstance(op, Layer)]
    lengths = [format_dim(op.results[0].type.dims[1]) for op in layers]
    assert lengths == ["ceildiv(3*T + 1, 4)", "ceildiv(3*(ceildiv(3*T + 1, 4)) + 1, 4)"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_the_cost_model_counts_the_products_that_run(share: float) -> None:
    known = family("vit")
    options, inputs = {"share": share, "force": True}, known.entry.example(2, 1)
    made = run(known, "merge-tokens", options).module
    with FlopCounterMode(display=False) as counter:
        outputs(known, made, inputs)
    # torch counts its fused attention on no processor
    ops = [op for op in flat(made).ops if not isinstance(op, Attention)]
    work = sum_work(work_of(op, Sizes()) for op in ops).evaluate({"B": 2})
    products = sum(n for kind, n in work.flops.items() if kind.unit == "matrix")
    assert counter.get_total_flops() == products


def test_it_runs_in_bfloat16() -> None:
    known = family("vit")
    made, inputs = run(known, "merge-tokens", {"share": 0.25}).module, known.entry.example(2, 1)
    store = WeightStore(known.raised.tensors)
    program = lower(made["forward"], made, store, ("cpu", "reference"), DType.BF16)
    found = program(*(x.bfloat16() for x in arguments(known, inputs)))[0]
    wanted = outputs(known, made, inputs)[0]
    torch.testing.assert_close(found.float(), wanted, atol=0.1, rtol=0.1)


def test_a_share_of_less_than_a_token_is_said() -> None:
    known = family("vit")
    found = run(known, "merge-tokens", {"share": 0.01})
    assert found.module is known.stepped.module
    assert {m.reason for m in found.missed} == {"it has too few tokens to merge 0.01 of them"}


@pytest.mark.parametrize(
    ("model", "at", "reason"),
    [
        ("llama", "@step", "tokens read one by one cannot merge"),
        ("mpnet", "layers.0", "its attention adds a bias, which two tokens would not share"),
        ("modernbert", "layers.0", "has a number for each token, which two would not share"),
        ("swin", "layers.0", "reshape: it mixes tokens"),
        ("deberta-v2", "@forward", "it has no layers"),
    ],
)
def test_where_tokens_cannot_merge_it_says_why(model: str, at: str, reason: str) -> None:
    known = family(model)
    found = run(known, "merge-tokens", {"share": SHARE})
    assert found.module is known.stepped.module
    assert any(m.at == at and reason in m.reason for m in found.missed)


def test_only_the_encoder_of_two_merges() -> None:
    known = family("bart")
    found, inputs = run(known, "merge-tokens", MergeTokens.identity), known.entry.example(2, 9)
    assert merging(found.module) == 2
    assert {m.at for m in found.missed} == {"layers.2", "layers.3"}
    wanted = outputs(known, known.stepped.module, inputs)
    torch.testing.assert_close(outputs(known, found.module, inputs)[0], wanted[0])


def test_a_second_time_is_refused() -> None:
    known = family("vit")
    made = run(known, "merge-tokens", {"share": SHARE}).module
    found = Pipeline((MergeTokens(share=SHARE),)).run(made)
    assert found.module is made
    assert "more than one stream" in found.missed[0].reason


@pytest.mark.parametrize("options", [{"share": 0.6}, {"share": -0.1}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match="share"):
        MergeTokens(**options)
