"""Pipelines: which passes run, in what order, spelled as text, YAML or Python objects.

Made by `Pipeline.of`, checked against the stages of a module before anything runs. How it runs is
in `running.py`, how it is written in `spelling.py`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from elidir.ir import Fuel, Module, Stage, nearest
from elidir.passes.base import Missed, Pass, Remark
from elidir.passes.errors import PipelineError
from elidir.passes.options import check_names
from elidir.passes.order import check_order
from elidir.passes.preset import load_preset, preset_names
from elidir.passes.registry import find_pass, passes
from elidir.passes.spelling import (
    Item,
    Loop,
    Named,
    format_text,
    format_yaml,
    parse_data,
    parse_text,
    parse_yaml,
)

if TYPE_CHECKING:
    from elidir.passes.instruments import Instrument


@dataclass(frozen=True)
class Fixpoint:
    """Steps that run again until they change nothing, `limit` times at most."""

    limit: int
    steps: tuple["Step", ...]

    def __post_init__(self) -> None:
        if self.limit < 1 or not self.steps:
            raise PipelineError("a fixpoint runs at least one pass at least once: fixpoint[4](cse)")


Step: TypeAlias = Pass | Fixpoint


@dataclass(frozen=True)
class Record:
    """What one run of one pass did; a pass within a fixpoint has a record for each round."""

    name: str
    changed: bool
    stats: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class PipelineResult:
    """The module that came out, and a record of each pass in the order they ran."""

    module: Module
    records: tuple[Record, ...]

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """All remarks in order, each once."""
        return tuple(dict.fromkeys(r for record in self.records for r in record.remarks))

    @property
    def missed(self) -> tuple[Missed, ...]:
        """What passes left as it was, and why."""
        return tuple(r for r in self.remarks if isinstance(r, Missed))


@dataclass(frozen=True)
class Pipeline:
    """An order of passes; equal to another of the same passes and options."""

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        for step in self.steps:
            if not isinstance(step, Pass | Fixpoint):
                raise PipelineError(f"{step!r} is no step of a pipeline; give passes or a Fixpoint")

    @classmethod
    def of(cls, spec: "PipelineLike") -> "Pipeline":
        """Return the pipeline that text, a YAML file, passes or plain data describe."""
        if isinstance(spec, Pipeline):
            return spec
        if isinstance(spec, Pass | Fixpoint):
            return cls((spec,))
        if isinstance(spec, Path):
            return cls.from_yaml(_read(spec))
        if isinstance(spec, str):
            return cls.parse(spec)
        if not isinstance(spec, Iterable):
            raise PipelineError(f"{spec!r} is no pipeline; give text, a YAML file, or passes")
        return cls(tuple(step for part in spec for step in _steps_of(part)))

    @classmethod
    def parse(cls, text: str) -> "Pipeline":
        """Return the pipeline of a text, such as `lossless` or `cse, fixpoint[4](fold, dce)`."""
        return cls(_build(parse_text(text)))

    @classmethod
    def from_yaml(cls, text: str) -> "Pipeline":
        """Return the pipeline of a YAML text."""
        return cls(_build(parse_yaml(text)))

    def __str__(self) -> str:
        return format_text(map(_item, self.steps))

    def to_yaml(self) -> str:
        """Return the YAML text, which `from_yaml` reads back."""
        return format_yaml(map(_item, self.steps))

    def passes(self) -> Iterator[Pass]:
        """Yield every pass in order, those within a fixpoint once."""
        yield from _passes(self.steps)

    def names(self) -> frozenset[str]:
        """Return the names of the passes."""
        return frozenset(p.name for p in self.passes())

    def needed(self) -> tuple[str, ...]:
        """Return the observations that its passes need, each once."""
        return tuple(dict.fromkeys(name for step in self.passes() for name in step.needed()))

    def __add__(self, other: "Pipeline") -> "Pipeline":
        return Pipeline(self.steps + other.steps)

    def fingerprint(self) -> str:
        """Return a hash of steps, options and the sources of the passes."""
        parts = [str(self), *(p.fingerprint() for p in self.passes())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def check(self, stage: Stage, observations: Iterable[str] = ()) -> None:
        """Raise `PipelineError` if a pass comes at the wrong stage or lacks an observation."""
        check_order(tuple(self.passes()), stage)
        known = set(observations)
        for step in self.passes():
            if lacking := [n for n in step.needed() if n not in known]:
                raise PipelineError(
                    f"pass '{step.name}' needs {lacking[0]}; calibrate the model first"
                )

    def run(
        self,
        module: Module,
        *,
        instruments: "Sequence[Instrument] | None" = None,
        fuel: Fuel | None = None,
        target: str = "",
        observations: Mapping[str, Any] | None = None,
        crash_dir: Path | None = None,
        reader: Module | None = None,
    ) -> PipelineResult:
        """Run every pass on a module; with `instruments` None, it is verified after each.

        `reader` is the module that reads what this one makes, if another does.

        Raises `PipelineError` before any work if the order cannot run, and `PassError` with a
        reproducer in `crash_dir` (the folder for temporary files by default) if a pass fails.
        """
        from elidir.passes.running import Runner

        self.check(module.stage, observations or ())
        runner = Runner(instruments, fuel or Fuel(), target, observations or {}, crash_dir, reader)
        return runner.run(self, module)


PipelineLike: TypeAlias = "str | Path | Pipeline | Pass | Fixpoint | Sequence[Any]"

CLEAN_UP = "fixpoint[6](canonicalize, fold-constants, cse, dce)"
INCREMENTALIZE = "incrementalize"


def framed(pipeline: PipelineLike) -> Pipeline:
    """Return a pipeline with clean-up and incrementalize before it, unless it names the latter."""
    pipeline = Pipeline.of(pipeline)
    if INCREMENTALIZE in pipeline.names():
        return pipeline
    return Pipeline.parse(f"{CLEAN_UP}, {INCREMENTALIZE}, {CLEAN_UP}") + pipeline


# ---- between steps and the tree of a spelling


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise PipelineError(
            f"cannot read the pipeline {path}: {reason}; name a YAML file"
        ) from None


def _steps_of(part: Any) -> tuple[Step, ...]:
    if isinstance(part, str | Path | Pipeline | Pass | Fixpoint):
        return Pipeline.of(part).steps
    return _build(parse_data([part]))


def _build(items: Iterable[Item]) -> tuple[Step, ...]:
    return tuple(step for item in items for step in _build_item(item))


def _build_item(item: Item) -> tuple[Step, ...]:
    if isinstance(item, Loop):
        return (Fixpoint(item.limit, _build(item.items)),)
    if item.name in preset_names():
        return _build_preset(item)
    if item.name not in passes():
        hint = nearest(item.name, [*passes(), *preset_names()])
        raise PipelineError(f"there is no pass or preset '{item.name}'{hint}")
    cls = find_pass(item.name)
    check_names(cls, item.name, item.options)
    return (cls(**item.options),)


def _build_preset(item: Named) -> tuple[Step, ...]:
    if item.options:
        raise PipelineError(f"preset '{item.name}' takes no options; give them to a pass instead")
    return _build(load_preset(item.name))


def _item(step: Step) -> Item:
    if isinstance(step, Fixpoint):
        return Loop(step.limit, tuple(map(_item, step.steps)))
    return Named(step.name, step.options())


def _passes(steps: Iterable[Step]) -> Iterator[Pass]:
    for step in steps:
        if isinstance(step, Fixpoint):
            yield from _passes(step.steps)
        else:
            yield step
