"""The roofline: from work and a target to seconds, with their bound and how sure they are.

Phases add: t = launches + (memory^p + compute^p)^(1/p), p from the arithmetic path (1 by default).
The path is the fastest one of the target's agent that takes the arithmetic without loss. The
efficiencies are the target's; fitting them to measurements comes on top and changes no formula.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from functools import reduce
from operator import add

from elidir.cost_models.energy import power_of
from elidir.cost_models.errors import TargetError
from elidir.cost_models.schema import Provenance, Quantity
from elidir.cost_models.target import Path, Target
from elidir.cost_models.work import Arithmetic, Work


class Bound(Enum):
    """What the time goes to, in the main."""

    COMPUTE = "compute"
    MEMORY = "memory"
    LAUNCH = "launch"
    TRANSFER = "transfer"


class Confidence(IntEnum):
    """LOW: rests on an assumed number or an unmodelled op; MEDIUM: on datasheets and measurements.

    HIGH is for models that were fitted to measurements and checked on others; a roofline never is.
    """

    LOW = 0
    MEDIUM = 1
    HIGH = 2


@dataclass(frozen=True)
class Cost:
    """Seconds in all and by part (the parts of a partly overlapped op sum to more), and joules.

    Energy is known of whole phases only (see `Model.phase`). `by_confidence` splits the seconds by
    what they rest on.
    """

    seconds: float = 0.0
    launch: float = 0.0
    memory: float = 0.0
    compute: float = 0.0
    transfer: float = 0.0
    joules: float | None = None
    by_confidence: tuple[float, ...] = (0.0,) * len(Confidence)

    @property
    def bound(self) -> Bound:
        """The greatest part."""
        return max(Bound, key=lambda b: float(getattr(self, b.value)))

    @property
    def confidence(self) -> Confidence:
        """The lowest that more than a tenth of the seconds rest on."""
        below = 0.0
        for level in Confidence:
            below += self.by_confidence[level]
            if below > self.seconds / 10:
                return level
        return Confidence.HIGH

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.seconds + other.seconds,
            self.launch + other.launch,
            self.memory + other.memory,
            self.compute + other.compute,
            self.transfer + other.transfer,
            None if self.joules is None or other.joules is None else self.joules + other.joules,
            tuple(a + b for a, b in zip(self.by_confidence, other.by_confidence, strict=True)),
        )

    def __mul__(self, n: float) -> "Cost":
        """Return the cost of doing it `n` times."""
        return Cost(
            self.seconds * n,
            self.launch * n,
            self.memory * n,
            self.compute * n,
            self.transfer * n,
            None if self.joules is None else self.joules * n,
            tuple(part * n for part in self.by_confidence),
        )

    def trusted(self, level: Confidence) -> "Cost":
        """Return the same cost, all of it of one confidence."""
        sure = tuple(self.seconds if c is level else 0.0 for c in Confidence)
        return replace(self, by_confidence=sure)


# Where no path takes a dtype, what it is costed as, and the report says so.
_STANDS_FOR = {
    "i4": ("i8", "f16", "f32"),
    "i8": ("f16", "f32"),
    "tf32": ("f32",),
    "bf16": ("f32", "f16"),
    "f16": ("f32",),
    "f32": ("bf16", "f16"),
    "f64": ("f32",),
}


@dataclass(frozen=True)
class Choice:
    """The path that a class of arithmetic takes, and the dtype that it is computed in."""

    name: str
    path: Path
    dtype: str

    @property
    def flop_per_s(self) -> float:
        """The rate that the path reaches."""
        return self.path.peak_tflop_per_s.value * 1e12 * self.path.efficiency.value


@dataclass(frozen=True)
class Model:
    """Costs of work on one target, on the agent that the target runs on."""

    target: Target

    def cost(self, work: Work) -> Cost:
        """Return the cost of work that is given in numbers (see `Work.evaluate`)."""
        memory = float(work.total_bytes) / self.bytes_per_s
        times = self._times(work)
        compute, launch = sum(times.values()), float(work.launches) * self.launch_seconds
        main = max(times, key=lambda c: times[c], default=None)
        p = main.path.overlap_p.value if main else 1.0
        seconds = launch + (memory**p + compute**p) ** (1 / p)
        cost = Cost(seconds, launch, memory, compute)
        return cost.trusted(self._confidence(cost, main, work))

    def phase(self, costs: Iterable[Cost]) -> Cost:
        """Return the cost of a phase: the sum, with the energy of a phase that is bound so."""
        whole = reduce(add, costs, Cost())
        power = power_of(self.target, whole.bound.value)
        return replace(whole, joules=power.value * whole.seconds if power else None)

    def _times(self, work: Work) -> dict[Choice, float]:
        """Return the seconds of arithmetic on each path."""
        times: dict[Choice, float] = {}
        for arithmetic, flops in work.flops.items():
            choice = self.choose(arithmetic)
            times[choice] = times.get(choice, 0.0) + float(flops) / choice.flop_per_s
        return times

    @property
    def bytes_per_s(self) -> float:
        """The bandwidth that the agent reaches; raises `TargetError` if it is unknown."""
        target, agent = self.target, self.target.agent
        if agent.dram_gb_per_s is None:
            field = f"agents.{target.runs_on}.dram_gb_per_s"
            hint = f'{{"base": "{target.name}", "{field}": ..}}'
            raise TargetError(f"the target '{target.name}' does not know its {field}; give {hint}")
        share = agent.dram_efficiency.value if agent.dram_efficiency else 1.0
        return agent.dram_gb_per_s.value * 1e9 * share

    @property
    def launch_seconds(self) -> float:
        """What a launch costs; nothing is counted if it is unknown, and the report says so."""
        launch = self.target.agent.launch_us
        return launch.value * 1e-6 if launch else 0.0

    def choose(self, arithmetic: Arithmetic) -> Choice:
        """Return the fastest path that takes the arithmetic, or one that stands for it."""
        for dtype in (arithmetic.dtype, *_STANDS_FOR.get(arithmetic.dtype, ())):
            choices = list(self._paths(arithmetic.unit, dtype))
            if choices:
                return max(choices, key=lambda c: c.flop_per_s)
        here = f"the agent '{self.target.runs_on}' of the target '{self.target.name}'"
        raise TargetError(f"{here} has no path that does {arithmetic}; add one under `paths`")

    def _paths(self, unit: str, dtype: str) -> Iterator[Choice]:
        for name, path in self.target.paths.items():
            if path.agent == self.target.runs_on and unit in path.does and dtype in path.takes:
                yield Choice(name, path, dtype)

    def _confidence(self, cost: Cost, main: Choice | None, work: Work) -> Confidence:
        """MEDIUM if no number behind the greatest part was assumed, and no path stood in."""
        agent, path = self.target.agent, main.path if main else None
        firm = {
            Bound.MEMORY: _firm(agent.dram_gb_per_s, agent.dram_efficiency),
            Bound.LAUNCH: _firm(agent.launch_us),
            Bound.COMPUTE: path is not None and _firm(path.peak_tflop_per_s, path.efficiency),
        }
        stand_in = any(self.choose(a).dtype != a.dtype for a in work.flops)
        sure = not cost.seconds or firm[cost.bound]
        return Confidence.MEDIUM if sure and not stand_in else Confidence.LOW

    # -- what a report must say

    def quantities(self, arithmetics: set[Arithmetic]) -> dict[str, Quantity | None]:
        """Return the numbers that costs of such arithmetic rest on, by field; None is unknown."""
        agent, prefix = self.target.agent, f"agents.{self.target.runs_on}"
        used: dict[str, Quantity | None] = {
            f"{prefix}.dram_gb_per_s": agent.dram_gb_per_s,
            f"{prefix}.dram_efficiency": agent.dram_efficiency,
            f"{prefix}.launch_us": agent.launch_us,
        }
        for choice in sorted({self.choose(a) for a in arithmetics}, key=lambda c: c.name):
            for field in ("peak_tflop_per_s", "efficiency", "overlap_p"):
                used[f"paths.{choice.name}.{field}"] = getattr(choice.path, field)
        return used

    def stand_ins(self, arithmetics: set[Arithmetic]) -> list[str]:
        """Return a sentence for each arithmetic that no path takes."""
        choices = [(a, self.choose(a)) for a in sorted(arithmetics)]
        return [
            f"{a} is costed as {c.dtype} on {c.name}: the target has no path for it"
            for a, c in choices
            if c.dtype != a.dtype
        ]


def _firm(rate: Quantity | None, share: Quantity | None = None) -> bool:
    """Whether a rate, and the share of it that is reached, are known: a measured rate is whole."""
    if rate is None or rate.kind is Provenance.ASSUMED:
        return False
    whole = rate.kind is Provenance.MEASURED and share is not None and share.value == 1
    return share is None or whole or share.kind is not Provenance.ASSUMED
