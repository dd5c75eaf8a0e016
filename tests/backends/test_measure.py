"""The microbenchmark of the host: what it writes is a target, and is found as one."""

from pathlib import Path

import pytest

from elidir.backends.cpu import measure as measure_module
from elidir.backends.cpu import measure_host, write_host
from elidir.cost_models import Provenance, load_target


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure_module, "SECONDS", 0.01)
    monkeypatch.setattr(measure_module, "ROWS", 128)
    monkeypatch.setattr(measure_module, "SIZE", 128)
    monkeypatch.setattr(measure_module, "STREAM_BYTES", 32 << 20)
    monkeypatch.setenv("ELIDIR_CACHE", str(tmp_path))


def test_the_measured_target_is_read_instead_of_the_shipped_one(tmp_path: Path) -> None:
    assert load_target("cpu").agent.launch_us.kind is Provenance.ASSUMED
    path = write_host()
    assert path == tmp_path / "targets" / "cpu.yaml"
    assert [p.name for p in path.parent.iterdir()] == ["cpu.yaml"]
    found = load_target("cpu")
    assert found.agent.launch_us.kind is Provenance.MEASURED
    assert found.aliases == load_target("host").aliases


def test_figures_are_plausible() -> None:
    host = measure_host()
    assert 0.1 < host.agent.dram_gb_per_s.value < 10_000
    assert 0.1 < host.agent.launch_us.value < 1_000
    assert {"cpu-f32", "cpu-bf16", "cpu-f64"} <= set(host.paths)
    assert all(1e-4 < p.peak_tflop_per_s.value < 1_000 for p in host.paths.values())
