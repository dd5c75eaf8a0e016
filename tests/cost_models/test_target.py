"""Targets: what ships is sane and sourced, and a file that is wrong is refused in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from elidir.cost_models import (
    Provenance,
    Quantity,
    Target,
    TargetError,
    dump_target,
    load_target,
    measured_file,
    targets,
)

NAMES = ("a100-80g", "cpu", "m2", "npu", "p40")


def quantities(target: Target) -> dict[str, Quantity]:
    found: dict[str, Quantity] = {}

    def walk(item: Any, name: str) -> None:
        if isinstance(item, Quantity):
            found[name] = item
        elif isinstance(item, dict):
            for key, inner in item.items():
                walk(inner, f"{name}.{key}")
        elif hasattr(item, "__dataclass_fields__"):
            for key in item.__dataclass_fields__:
                walk(getattr(item, key), f"{name}.{key}")

    walk(target, "")
    return found


def p40() -> dict[str, Any]:
    data = yaml.safe_load(dump_target(load_target("p40")))
    assert isinstance(data, dict)
    return data


def write(folder: Path, data: object) -> Path:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def test_ships_five_targets() -> None:
    assert tuple(targets()) == NAMES


def test_aliases_name_a_target() -> None:
    assert load_target("a100") == load_target("a100-80g")
    assert load_target("hexagon").name == "npu"


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source(name: str) -> None:
    found = quantities(load_target(name))
    assert found
    for field, quantity in found.items():
        assert len(quantity.source) >= 10, field
        assert quantity.value > 0, field


@pytest.mark.parametrize("name", NAMES)
def test_ridge_point_is_plausible(name: str) -> None:
    """Flops per byte where arithmetic and memory balance: 1 to 1000 on anything built."""
    target = load_target(name)
    bandwidth = target.agent.dram_gb_per_s
    assert bandwidth
    rates = [p.peak_tflop_per_s.value for p in target.paths.values() if p.agent == target.runs_on]
    assert 1 < max(rates) * 1000 / bandwidth.value < 1000


def test_no_datasheet_number_is_copied_between_chips() -> None:
    """Two chips with the same bandwidth or rate would be a slip of copying; none has that here."""
    seen: dict[float, str] = {}
    for name in ("a100-80g", "m2", "npu", "p40"):
        target = load_target(name)
        for path in target.paths.values():
            rate = path.peak_tflop_per_s
            assert seen.setdefault(rate.value, name) == name


def test_unknown_is_none() -> None:
    m2 = load_target("m2")
    assert m2.power.memory_bound_w is None
    assert m2.agents["cpu"].dram_gb_per_s is None


def test_dump_reads_back(tmp_path: Path) -> None:
    for target in targets().values():
        file = tmp_path / "again.yaml"
        file.write_text(dump_target(target))
        assert load_target(file) == target


def test_sha_follows_the_numbers() -> None:
    same, other = load_target("p40"), load_target({"base": "p40", "dram_gb_per_s": 347})
    assert load_target("p40").sha == same.sha != other.sha


def test_measured_host_is_read_first() -> None:
    assert load_target("cpu").agents["cpu"].dram_gb_per_s == Quantity(
        15,
        Provenance.ASSUMED,
        "two cores of an x86 server; run `elidir targets --measure`",
    )
    data = yaml.safe_load(dump_target(load_target("cpu")))
    number = {"value": 19, "kind": "measured", "source": "streaming read of packed weights"}
    data["agents"]["cpu"]["dram_gb_per_s"] = number
    file = measured_file("cpu")
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(data))
    found = load_target("cpu").agents["cpu"].dram_gb_per_s
    assert found
    assert (found.value, found.kind) == (19, Provenance.MEASURED)


def test_override_by_bare_and_dotted_names() -> None:
    target = load_target({"base": "m2", "dram_gb_per_s": 200, "agents.cpu.dram_gb_per_s": 114})
    assert target.agents["gpu"].dram_gb_per_s == Quantity(
        200, Provenance.ASSUMED, "set by the caller"
    )
    cpu = target.agents["cpu"].dram_gb_per_s
    assert cpu
    assert cpu.value == 114
    assert target.agents["gpu"].launch_us == load_target("m2").agents["gpu"].launch_us


def test_override_in_a_users_file(tmp_path: Path) -> None:
    source = {"value": 250, "kind": "measured", "source": "a meter at the wall"}
    file = write(tmp_path, {"base": "p40", "name": "mine", "power.memory_bound_w": source})
    target = load_target(file)
    assert target.name == "mine"
    assert target.power.memory_bound_w == Quantity(250, Provenance.MEASURED, "a meter at the wall")


def test_override_of_a_path() -> None:
    target = load_target({"base": "p40", "paths.dp4a-int8.efficiency": 0.3})
    assert target.paths["dp4a-int8"].efficiency.value == 0.3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"base": "m3"}, "unknown target 'm3'; "),
        ({"base": "m2", "dram_gb_s": 200}, "no field 'dram_gb_s' to override; did you mean"),
        ({"base": "m2", "dram_gb_per_s": "200 GB/s"}, "'dram_gb_per_s' is '200 GB/s', not a num"),
        ({"base": "m2", "dram_gb_per_s": -1}, "'dram_gb_per_s' is -1, not above zero"),
        ({"base": "m2", "peak_tflop_per_s": 4}, "did you mean"),
        ({"base": "m2", "runs_on": "gpus"}, "'runs_on' is 'gpus'; did you mean 'gpu'?"),
    ],
)
def test_wrong_override_is_refused(override: dict[str, Any], said: str) -> None:
    with pytest.raises(TargetError) as error:
        load_target(override)
    assert said in str(error.value)


def change(data: dict[str, Any], path: str, item: object) -> dict[str, Any]:
    *folders, last = path.split("/")
    inner = data
    for folder in folders:
        inner = inner[folder]
    if item is None:
        del inner[last]
    else:
        inner[last] = item
    return data


@pytest.mark.parametrize(
    ("path", "item", "said"),
    [
        ("title", None, "the field 'title' is missing; add it"),
        ("agents/gpu/dram_gbps", 1, "unknown field 'agents.gpu.dram_gbps'; did you mean 'dram_gb"),
        ("agents/gpu/dram_gb_per_s", 346, "'agents.gpu.dram_gb_per_s' is 346; write {value: .., k"),
        ("agents/gpu/dram_gb_per_s/source", None, "'agents.gpu.dram_gb_per_s.source' is missing"),
        ("agents/gpu/dram_gb_per_s/kind", "guess", "kind' is 'guess'; known: assumed, datasheet"),
        ("agents/gpu/dram_gb_per_s/value", -3, "value' is -3, not above zero; leave the field out"),
        ("agents/gpu/dram_gb_per_s/value", 0, "value' is 0, not above zero"),
        ("agents/gpu/dram_gb_per_s/value", "1e2 GB", "value' is '1e2 GB', not a number; the unit"),
        ("agents/gpu/dram_gb_per_s/value", True, "value' is True, not a number"),
        ("agents/gpu/dram_gb_per_s/value", float("nan"), "value' is nan, not above zero"),
        ("agents/gpu/dram_efficiency/value", 1.4, "dram_efficiency' is 1.4; it is a fraction"),
        ("agents", [], "'agents' is []; write a mapping"),
        ("aliases", "tesla", "'aliases' is 'tesla'; write a list"),
        ("runs_on", "cpu", "'runs_on' is 'cpu'; did you mean 'gpu'"),
        ("paths/dp4a-int8/agent", "gpus", "'paths.dp4a-int8.agent' is 'gpus'; did you mean 'gpu'"),
        ("paths/dp4a-int8/takes", ["int8"], "'paths.dp4a-int8.takes' is 'int8'; did you mean 'i8'"),
        ("paths/dp4a-int8/does", [], "'paths.dp4a-int8.does' is empty; known: matrix, vector"),
        ("paths/dp4a-int8/overlap_p/value", 0.5, "'paths.dp4a-int8.overlap_p' is below 1"),
        ("paths/dp4a-int8/peak_tops", 1, "unknown field 'paths.dp4a-int8.peak_tops'"),
    ],
)
def test_wrong_file_is_refused(path: str, item: object, said: str, tmp_path: Path) -> None:
    file = write(tmp_path, change(p40(), path, item))
    with pytest.raises(TargetError) as error:
        load_target(file)
    assert said in str(error.value)
    assert str(error.value).startswith(str(file))


def test_file_that_is_no_target(tmp_path: Path) -> None:
    for text in ("- 1\n", "a: [", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(TargetError, match=r"bad\.yaml"):
            load_target(tmp_path / "bad.yaml")
    with pytest.raises(TargetError, match="cannot be read"):
        load_target(tmp_path / "none.yaml")
    with pytest.raises(TargetError, match="unknown target 'p4o'; did you mean 'p40'"):
        load_target("p4o")
