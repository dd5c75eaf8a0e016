"""Energy: mean power of the whole device over a phase that memory or arithmetic bounds.

Where a target has no such measurement the energy is unknown, and is reported so: it is never filled
in from a datasheet's limit. Waiting for launches draws what being bound by memory does, since the
power that was measured at batch 1 includes such gaps.
"""

from elidir.cost_models.schema import Quantity
from elidir.cost_models.target import Target


def power_field(bound: str) -> str:
    """Return the field of `Power` that holds while this is the bound."""
    return "compute_bound_w" if bound == "compute" else "memory_bound_w"


def power_of(target: Target, bound: str) -> Quantity | None:
    """Return the mean power of a phase with this bound; None if it is unknown."""
    power: Quantity | None = getattr(target.power, power_field(bound))
    return power


def why_unknown(target: Target, bound: str) -> str:
    """Return why the energy of a phase with this bound is unknown; empty if it is known."""
    known = power_of(target, bound) is not None
    return "" if known else f"no source gives power.{power_field(bound)} of {target.name}"
