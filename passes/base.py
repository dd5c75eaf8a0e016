"""What a pass is: a frozen dataclass whose fields are its options, and what it sees and says.

`Pass.run` takes a module and a `Context` and returns a `PassResult`; a pass that changed nothing
returns the very module it was given. Remarks are data: `Applied`, or `Missed` with the reason.
"""

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

from elidir.ir import Builder, ElidirError, Fuel, Module, Op, Rewriter, Rule, Stage, Value
from elidir.passes.errors import PipelineError
from elidir.passes.options import check_value, options_of, plain
from elidir.passes.spelling import Named, format_text


class Invariant(Enum):
    """What a pass promises about the outputs of the program."""

    EXACT = "E"  # the same outputs within the dtype's tolerance
    GREEDY = "G"  # token-identical to greedy decoding
    DISTRIBUTION = "D"  # the same distribution of tokens
    BOUNDED = "B"  # a bounded deviation
    REFERENCE = "R"  # equal to its own plain reference
    QUALITY = "Q"  # measured quality only

    @property
    def lossless(self) -> bool:
        """Whether the promise is exact, token-identical or the same distribution."""
        return self in (Invariant.EXACT, Invariant.GREEDY, Invariant.DISTRIBUTION)


@dataclass(frozen=True)
class Applied:
    """A pass changed something: where, and what in a few words."""

    by: str
    at: str = ""
    what: str = ""

    def __str__(self) -> str:
        return f"applied {self.by}{_place(self.at)}{f' ({self.what})' if self.what else ''}"


@dataclass(frozen=True)
class Missed:
    """A pass left something as it was: where, why, and what would help."""

    by: str
    reason: str
    at: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"missed {self.by}{_place(self.at)}: {self.reason}{remedy}"


Remark: TypeAlias = Applied | Missed


def _place(at: str) -> str:
    return f" at {at}" if at else ""


@dataclass(frozen=True)
class PassResult:
    """The module after a pass (the same object if nothing changed), counts and remarks."""

    module: Module
    stats: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()


T = TypeVar("T")

# A class with `of(module)`, or a function of a module; its result is what `Context.get` returns.
Analysis: TypeAlias = Callable[..., T]


@dataclass
class Context:
    """What one run of a pass may look at, and where it leaves its remarks.

    `fuel` is the budget of rewrites of the whole pipeline, `target` a name that passes do not read
    into, `observations` what calibration recorded, by name; `reader` is the module that reads what
    this one makes, as a language model reads the features of a picture.
    """

    module: Module
    by: str = ""
    fuel: Fuel = field(default_factory=Fuel)
    target: str = ""
    observations: Mapping[str, Any] = field(default_factory=dict)
    reader: Module | None = None
    analyses: dict[Any, Any] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    sites: list[str] = field(default_factory=list)
    remarks: dict[Remark, None] = field(default_factory=dict)

    def get(self, analysis: Analysis[T]) -> T:
        """Return an analysis of the module that the pass was given, made once."""
        if analysis not in self.analyses:
            self.analyses[analysis] = getattr(analysis, "of", analysis)(self.module)
        result: T = self.analyses[analysis]
        return result

    def observation(self, name: str) -> Any:
        """Return what calibration recorded; raises `PipelineError` if it did not."""
        if name not in self.observations:
            raise PipelineError(f"pass '{self.by}' needs the observation '{name}'; calibrate first")
        return self.observations[name]

    def rewrite(self, module: Module, rule: Rule) -> Module:
        """Rebuild a module by one rule, counting what fired; the same object if nothing did."""
        sites: list[str] = []

        def noted(op: Op, b: Builder) -> Sequence[Value] | None:
            values = rule(op, b)
            sites.extend([] if values is None else [op.loc])
            return values

        rewriter = Rewriter(module, noted, by=self.by, fuel=self.fuel)
        module = rewriter.run()
        self.hits.update(rewriter.hits)
        # The fuel can only end, so the rewrites that it allowed are the first ones.
        self.sites += sites[: rewriter.hits.total()]
        return module

    def rewrite_all(self, module: Module, rule: Rule) -> Module:
        """Rebuild a module by one rule again and again, until it fires no more."""
        while (new := self.rewrite(module, rule)) is not module:
            module = new
        return module

    def applied(self, at: Op | str, what: str = "") -> None:
        """Remark that something was changed."""
        self.remarks[Applied(self.by, _at(at), what)] = None

    def missed(self, at: Op | str, reason: str, *, remedy: str = "") -> None:
        """Remark that something was left as it was, and why."""
        self.remarks[Missed(self.by, reason, _at(at), remedy)] = None

    def unchanged(self) -> PassResult:
        """Return the module as it was given, with the remarks so far."""
        return self.result(self.module)

    def result(self, module: Module) -> PassResult:
        """Return a module with the remarks so far, and one that sums up the rewrites counted."""
        if self.hits and not any(isinstance(r, Applied) for r in self.remarks):
            self.applied(*self._summary())
        return PassResult(module, dict(self.hits), tuple(self.remarks))

    def _summary(self) -> tuple[str, str]:
        """Return where the rewrites were, if they are few, and how many of what."""
        at = ", ".join(dict.fromkeys(filter(None, self.sites))) if len(self.sites) <= 3 else ""
        return at, ", ".join(f"{n} {kind}" for kind, n in sorted(self.hits.items()))


def _at(at: Op | str) -> str:
    return at if isinstance(at, str) else at.loc or at.kind


@dataclass(frozen=True)
class Pass:
    """Base of every pass; the fields of a subclass are its options, checked when it is made.

    `requires` holds the stages at which it runs (none means any) and the analyses that it reads,
    `needs` the names of observations, `preserves` the analyses that stay true after it, `produces`
    the stage that it leads to; `pictures` says that it is for the part of a model that reads
    pictures alone. A pass that changes outputs has options at which it is `neutral`,
    and an `identity`: those at which it changes the program, but no output.
    """

    name: ClassVar[str] = ""
    invariant: ClassVar[Invariant]
    requires: ClassVar[tuple[Stage | Analysis[Any], ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    preserves: ClassVar[tuple[Analysis[Any], ...]] = ()
    neutral: ClassVar[Mapping[str, Any] | None] = None
    identity: ClassVar[Mapping[str, Any] | None] = None
    produces: ClassVar[Stage | None] = None
    pictures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check each option against its annotation; raises `PipelineError`."""
        for option in options_of(type(self)):
            value = check_value(self.name, option, getattr(self, option.name))
            object.__setattr__(self, option.name, value)

    def run(self, module: Module, cx: Context) -> PassResult:
        """Return the changed module, or the same object if there was nothing to do."""
        raise ElidirError(f"pass '{self.name}' has no run; write run(self, module, cx)")

    def needed(self) -> tuple[str, ...]:
        """Return the observations needed with these options: `needs`, unless a pass narrows it."""
        return self.needs

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages at which the pass may run."""
        return tuple(r for r in self.requires if isinstance(r, Stage)) or tuple(Stage)

    def options(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as plain data."""
        given = {o.name: (o.default, getattr(self, o.name)) for o in options_of(type(self))}
        return {name: plain(v) for name, (default, v) in given.items() if v != default}

    def __str__(self) -> str:
        return format_text([Named(self.name, self.options())])

    def fingerprint(self) -> str:
        """Return name, options and a hash of the source file: equal for equal work."""
        return f"{self}#{_source_hash(inspect.getsourcefile(type(self)))}"


@cache
def _source_hash(path: str | None) -> str:
    source = Path(path).read_bytes() if path and Path(path).exists() else b""
    return hashlib.sha256(source).hexdigest()[:16]
