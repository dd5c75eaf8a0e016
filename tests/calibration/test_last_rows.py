"""What calibration sees of the last token's attention, and what prune-tokens makes of it."""

import numpy as np
import pytest
import torch

from elidir.backends import Instruction, Weights, WeightStore
from elidir.frontends.calibration import Network, observe
from elidir.frontends.calibration.recorders import LastRows
from elidir.ir import Attention, DType, Entry, Tensor, Value, Weight
from elidir.passes import ATTENTION_LOST, SHARES, AttentionLost, Pipeline
from elidir.passes.token_pruning.placing import left, lost, place
from tests.frontends.families import Family, family


def seen(name: str, length: int) -> AttentionLost:
    """What is seen of a family on two rows of tokens."""
    known: Family = family(name)
    network = Network(known.module, WeightStore(known.raised.tensors), known.raised.inputs)
    ids = torch.randint(3, 60, (2, length), generator=torch.Generator().manual_seed(0))
    found: AttentionLost = observe(network, network.feeds(ids), (ATTENTION_LOST,)).found[
        ATTENTION_LOST
    ]
    return found


def test_an_attention_loses_less_the_more_goes_on_and_least_by_its_own_choice() -> None:
    found = seen("llama", 40)
    assert found.lost.shape == (2, 2, len(SHARES))
    assert (np.diff(found.lost, axis=2) <= 1e-6).all()
    for share in range(len(SHARES)):
        assert (found.lost[:, 0, share] >= found.lost[0, 0, share] - 1e-6).all()
    assert found.at(0, 1, 1.0) == 0.0


@pytest.mark.parametrize(("name", "length"), [("llama", 2), ("vit", 0)])
def test_nothing_to_drop_is_an_observation_of_nothing(name: str, length: int) -> None:
    if length:
        assert len(seen(name, length).lost) == 0
    else:
        known = family(name)
        network = Network(known.module, WeightStore(known.raised.tensors), known.raised.inputs)
        data = [known.entry.example(1, 1)]
        found = observe(network, network.feeds(data), (ATTENTION_LOST,)).found[ATTENTION_LOST]
        assert len(found.lost) in (0, 2)


def observed(known: Family, ids: torch.Tensor, valid: torch.Tensor) -> AttentionLost:
    """What is seen of one row of tokens, some of them padding."""
    network = Network(known.module, WeightStore(known.raised.tensors), known.raised.inputs)
    given = {"input_ids": ids, "attention_mask": valid.long()}
    given["position_ids"] = (valid.cumsum(1) - 1).clamp(min=0)
    found: AttentionLost = observe(network, network.feeds([given]), (ATTENTION_LOST,)).found[
        ATTENTION_LOST
    ]
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_token(side: str) -> None:
    known = family("llama")
    ids = torch.randint(3, 60, (1, 20), generator=torch.Generator().manual_seed(0))
    before, after = (6, 0) if side == "left" else (0, 6)
    padded = torch.nn.functional.pad(ids, (before, after), value=2)
    valid = torch.nn.functional.pad(torch.ones(1, 20, dtype=torch.bool), (before, after))
    wanted = observed(known, ids, torch.ones(1, 20, dtype=torch.bool))
    found = observed(known, padded, valid)
    np.testing.assert_allclose(found.lost, wanted.lost, atol=1e-5)
    assert found.tokens == wanted.tokens


def test_a_head_whose_sink_takes_all_attention_has_no_say() -> None:
    def kind(heads: int) -> Value:
        return Value(Tensor((1, heads, 12, 8), DType.F32))

    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 1, 2, 12, 8)
    sinks = Weight("sinks", Tensor((2,), DType.F32))
    store = WeightStore({"sinks": torch.tensor([50.0, -50.0])})
    weights = Weights(store, {"sinks": Entry(sinks.type)})
    seen = []
    for heads, sink in ((slice(None), sinks), (slice(1, 2), None)):
        recorder = LastRows()
        for layer in range(2):
            parts = (q[layer][:, heads], k[layer][:, heads])
            op = Attention(*(kind(parts[0].shape[1]) for _ in range(3)), sinks=sink)
            call = Instruction(lambda *_: None, (), (), (), op, "reference")
            recorder.see(call, [*parts, parts[1]], None, weights)
        seen.append(recorder.observation(weights).lost)
    np.testing.assert_allclose(*seen, atol=1e-5)


def test_the_pass_takes_the_layer_that_loses_least_for_the_work() -> None:
    made = np.full((6, 6, len(SHARES)), 0.5, np.float32)
    made[3] = 0.1  # what attention 3 drops, later layers need least
    found = AttentionLost(made, 100.0)
    cuts, much = place(found, (0.5,), 0.9)
    assert cuts == (4,)
    assert much == pytest.approx(2 * 0.1 / 6)
    assert left(cuts, (0.5,), 6) == pytest.approx(5 / 6)
    assert lost(found, (1,), (0.5,)) == pytest.approx(5 * 0.5 / 6)


def test_a_pipeline_with_work_needs_it_and_uses_it() -> None:
    pipeline = Pipeline.parse("prune-tokens{keep=(0.5,) work=0.9 at_least=3}")
    assert pipeline.needed() == (ATTENTION_LOST,)
    assert Pipeline.parse("prune-tokens{keep=0.5}").needed() == ()
    known = family("llama")
    found = pipeline.run(known.stepped.module, observations={ATTENTION_LOST: seen("llama", 40)})
    assert any("calibrated" in str(remark) for remark in found.remarks)
    assert "prefill" in found.module.functions
