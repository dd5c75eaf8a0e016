"""Small questions that several exact passes ask: may an op go, may two be one, what to call it.

Functions of an op or of names; no pass lives here.
"""

from collections.abc import Sequence
from itertools import takewhile

from elidir.ir import Op, Opaque

_RANDOM = ("rand", "bernoulli", "dropout", "multinomial", "normal", "uniform", "poisson")


def _aten_name(op: Opaque) -> str:
    """Return `index_put_` of `aten.index_put_.default`."""
    parts = op.target.split(".")
    return parts[-2] if len(parts) > 1 else parts[0]


def mutates(op: Op) -> bool:
    """Whether an op writes into an operand: ATen ops that do end with an underscore."""
    return isinstance(op, Opaque) and _aten_name(op).endswith("_")


def is_random(op: Op) -> bool:
    """Whether two equal ops may give different results."""
    return isinstance(op, Opaque) and any(word in _aten_name(op) for word in _RANDOM)


def joined(names: Sequence[str]) -> str:
    """Return one name for weights taken together: `attn.q`, `attn.k` give `attn.q+k`."""
    paths = [name.split(".") for name in names]
    heads = zip(*(path[:-1] for path in paths), strict=False)
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, heads)))
    return ".".join([*paths[0][:shared], "+".join(".".join(p[shared:]) for p in paths)])
