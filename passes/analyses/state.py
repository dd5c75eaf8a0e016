"""What must live on between steps: the keys and values of each attention.

Whether keys are cached before or after their rotary embedding is part of the state. The caches
themselves are made by `incrementalize`.
"""

from dataclasses import dataclass

from elidir.ir import Attention, Module, Op, Rope, Value


@dataclass(frozen=True)
class State:
    """The attentions whose keys and values are cached; of some, keys that are already rotated."""

    attentions: tuple[Attention, ...]
    rotated: frozenset[Attention]

    @classmethod
    def of(cls, module: Module) -> "State":
        """Find the state of every function and body."""
        attentions = tuple(o for o in module.ops() if isinstance(o, Attention))
        made: dict[Value, Op] = {r: o for o in module.ops() for r in o.results}
        rotated = (a for a in attentions if isinstance(made.get(a.k), Rope))
        return cls(attentions, frozenset(rotated))

    def is_rotated(self, attention: Attention) -> bool:
        """Whether the keys of an attention are cached after their rotary embedding."""
        return attention in self.rotated
