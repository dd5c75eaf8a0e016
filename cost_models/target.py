"""Targets: what the hardware can do, one YAML file each, every number with its source and kind.

Rates belong to arithmetic paths and bandwidth to agents, because one chip has several of both. What
is unknown is None, never 0. A target says nothing about models, engines or ops.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, TypeAlias

import yaml

from elidir.cost_models.errors import TargetError
from elidir.cost_models.schema import Place, Provenance, Quantity, build, number, read_yaml
from elidir.ir import cache_folder, nearest

SHIPPED = FilePath(__file__).parent / "targets"
ARITHMETIC = frozenset("f64 f32 tf32 f16 bf16 i8 i4".split())
WORK_KINDS = frozenset({"matrix", "vector"})


@dataclass(frozen=True)
class Agent:
    """A processor with its own way to memory: its bandwidth, and what starting a kernel costs."""

    dram_gb_per_s: Quantity | None = None
    dram_efficiency: Quantity | None = None
    launch_us: Quantity | None = None
    addressable_gb: Quantity | None = None


@dataclass(frozen=True)
class Path:
    """A way to compute: which work it does, the dtypes it takes without loss, and its rate.

    `overlap_p` is the p of (memory^p + compute^p)^(1/p): 1 adds them, a large p takes the greater.
    """

    agent: str
    does: tuple[str, ...]
    takes: tuple[str, ...]
    peak_tflop_per_s: Quantity
    efficiency: Quantity
    overlap_p: Quantity


@dataclass(frozen=True)
class Power:
    """Mean power of the whole device while idle, or while bound by memory or by arithmetic."""

    idle_w: Quantity | None = None
    memory_bound_w: Quantity | None = None
    compute_bound_w: Quantity | None = None
    tdp_w: Quantity | None = None


@dataclass(frozen=True)
class Target:
    """One piece of hardware; `runs_on` names the agent that costs are for."""

    name: str
    title: str
    runs_on: str
    agents: dict[str, Agent]
    paths: dict[str, Path]
    aliases: tuple[str, ...] = ()
    memory_gb: Quantity | None = None
    host_link_gb_per_s: Quantity | None = None
    shared_dram_gb_per_s: Quantity | None = None
    power: Power = Power()

    @property
    def agent(self) -> Agent:
        """The agent that costs are for."""
        return self.agents[self.runs_on]

    @property
    def sha(self) -> str:
        """A hash of everything in it, for caches."""
        return hashlib.sha256(dump_target(self).encode()).hexdigest()[:16]


TargetLike: TypeAlias = str | FilePath | Mapping[str, Any] | Target


def load_target(target: TargetLike) -> Target:
    """Return a target from its name, alias or YAML file, or from `{base: .., field: value}`.

    Raises:
        TargetError: the name is unknown, or the file has a field that is missing or wrong.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, Mapping):
        return _check(*_from_data(dict(target), Place("target", TargetError)))
    file = find_target(target)
    place = Place(str(file), TargetError)
    return _check(*_from_data(read_yaml(file, place), place))


def targets() -> dict[str, Target]:
    """Return every target that ships with elidir (the host as measured, if it was), by name."""
    return {name: load_target(name) for name in sorted(f.stem for f in SHIPPED.glob("*.yaml"))}


def find_target(target: str | FilePath) -> FilePath:
    """Return the file of a target's name, alias or path; raises `TargetError` if there is none."""
    if not isinstance(target, str | FilePath):
        raise TargetError(f"{target!r} is no target; give a name, a YAML file, or a mapping")
    path = FilePath(target)
    if path.suffix in (".yaml", ".yml"):
        return path
    name = str(target)
    if not (SHIPPED / f"{name}.yaml").is_file():
        name = _alias(name)
    measured = measured_file(name)
    return measured if measured.is_file() else SHIPPED / f"{name}.yaml"


def _alias(target: str) -> str:
    names = dict(_names())
    if target not in names:
        hint = nearest(target, names)
        raise TargetError(f"unknown target '{target}'{hint}; the path of a YAML file will do too")
    return names[target]


def measured_file(name: str) -> FilePath:
    """Return where a measurement of this machine is kept; `load_target` reads it first."""
    return cache_folder() / "targets" / f"{name}.yaml"


def dump_target(target: Target) -> str:
    """Return the YAML text of a target, which `load_target` reads back to an equal one."""
    return yaml.safe_dump(_plain(dataclasses.asdict(target)), sort_keys=False, width=100)


def _plain(item: Any) -> Any:
    """Drop what is unknown, and turn enums and tuples into what YAML knows."""
    if isinstance(item, dict):
        return {k: _plain(v) for k, v in item.items() if v is not None}
    if isinstance(item, tuple):
        return [_plain(v) for v in item]
    return item.value if isinstance(item, Provenance) else item


def _names() -> Iterator[tuple[str, str]]:
    for file in SHIPPED.glob("*.yaml"):
        data = read_yaml(file, Place(str(file), TargetError))
        yield from ((name, file.stem) for name in (file.stem, *data.get("aliases", ())))


# ---- overrides


def _from_data(data: dict[str, Any], place: Place) -> tuple[Target, Place]:
    if "base" not in data:
        return build(Target, data, place), place
    base = load_target(str(data.pop("base")))
    plain = _plain(dataclasses.asdict(base))
    for key, item in data.items():
        _override(plain, base, str(key), item, place)
    return build(Target, plain, place), place


def _override(plain: dict[str, Any], base: Target, key: str, item: Any, place: Place) -> None:
    """Replace one number: a bare name, that of the agent it runs on, or `agents.cpu.launch_us`."""
    if key in ("name", "title", "runs_on", "aliases"):
        plain[key] = item
        return
    fields = list(_number_fields(base))
    short = [n for n in fields if n.rpartition(".")[2] == key and _is_default(n, base)]
    name = short[0] if len(short) == 1 else key
    if name not in fields:
        known = [*fields, *(n.rpartition(".")[2] for n in fields if _is_default(n, base))]
        near = nearest(key, short or known)
        raise place.fail(f"'{base.name}' has no field '{key}' to override{near}")
    *folders, last = name.split(".")
    inner = plain
    for folder in folders:
        inner = inner.setdefault(folder, {})
    inner[last] = item if isinstance(item, Mapping) else _by_caller(item, place.at(key))


def _by_caller(item: Any, place: Place) -> dict[str, Any]:
    return {"value": number(item, place), "kind": "assumed", "source": "set by the caller"}


def _number_fields(target: Target) -> Iterator[str]:
    top = ("memory_gb", "host_link_gb_per_s", "shared_dram_gb_per_s")
    yield from top
    yield from (f"power.{f.name}" for f in dataclasses.fields(Power))
    for name in target.agents:
        yield from (f"agents.{name}.{f.name}" for f in dataclasses.fields(Agent))
    for name in target.paths:
        numbers = ("peak_tflop_per_s", "efficiency", "overlap_p")
        yield from (f"paths.{name}.{f}" for f in numbers)


def _is_default(name: str, target: Target) -> bool:
    """Whether a bare last name may stand for this one: not that of an agent which is not used."""
    return not name.startswith("agents.") or name.startswith(f"agents.{target.runs_on}.")


# ---- rules that span fields


def _check(target: Target, place: Place) -> Target:
    _one_of(target.runs_on, target.agents, place.at("runs_on"))
    for name, path in target.paths.items():
        inside = place.at(f"paths.{name}")
        _one_of(path.agent, target.agents, inside.at("agent"))
        _all_of(path.does, WORK_KINDS, inside.at("does"))
        _all_of(path.takes, ARITHMETIC, inside.at("takes"))
        _fraction(path.efficiency, inside.at("efficiency"))
        if path.overlap_p.value < 1:
            raise inside.at("overlap_p").wrong("is below 1; 1 adds the phases, more overlaps them")
    for name, agent in target.agents.items():
        _fraction(agent.dram_efficiency, place.at(f"agents.{name}.dram_efficiency"))
    if not any(p.agent == target.runs_on for p in target.paths.values()):
        raise place.at("paths").wrong(f"has none of the agent '{target.runs_on}'; add one")
    return target


def _one_of(name: str, known: Mapping[str, object] | frozenset[str], place: Place) -> None:
    if name not in known:
        raise place.wrong(f"is '{name}'{nearest(name, known)}")


def _all_of(names: tuple[str, ...], known: frozenset[str], place: Place) -> None:
    if not names:
        raise place.wrong(f"is empty{nearest('', known)}")
    for name in names:
        _one_of(name, known, place)


def _fraction(quantity: Quantity | None, place: Place) -> None:
    if quantity is not None and quantity.value > 1:
        raise place.wrong(f"is {quantity.value:g}; it is a fraction of the peak, at most 1")
