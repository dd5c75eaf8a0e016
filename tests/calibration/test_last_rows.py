"""What calibration sees of the last token's attention, and what prune-tokens makes of it."""

import numpy as np
import pytest
import torch

from elidir.backends import WeightStore
from elidir.frontends.calibration import Network, observe
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
