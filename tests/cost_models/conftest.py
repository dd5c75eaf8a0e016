"""What tests of the cost models share: a cache directory without a measured host, and tiny models.

Only fixtures live here.
"""

from pathlib import Path

import pytest

from elidir.cost_models import Description


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, so that a measurement of this machine changes no test."""
    monkeypatch.setenv("ELIDIR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny() -> Description:
    """Two layers with grouped heads, small enough to count by hand."""
    return Description(
        name="tiny",
        source="made up",
        layers=2,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=128,
        vocab=256,
        max_positions=512,
        dtype="f32",
    )
