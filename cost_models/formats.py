"""Storage formats of weights: how many bits each takes, block scales included.

The bits of ggml's formats are those of its block structs (ggml-common.h): bytes of a block times 8
over its weights. A format that is not here is registered with `register_format`.
"""

from collections.abc import Mapping
from fractions import Fraction

from elidir.cost_models.errors import WorkError
from elidir.ir import DType, Entry, nearest, product

_BLOCK_32 = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34, "q8_1": 36}
_BLOCK_32 |= {"iq4_nl": 18, "mxfp4": 17}
_BLOCK_256 = {"q2_k": 84, "q3_k": 110, "q4_k": 144, "q5_k": 176, "q6_k": 210, "q8_k": 292}
_BLOCK_256 |= {"iq1_s": 50, "iq1_m": 56, "iq2_xxs": 66, "iq2_xs": 74, "iq2_s": 82}
_BLOCK_256 |= {"iq3_xxs": 98, "iq3_s": 110, "iq4_xs": 136, "tq1_0": 54, "tq2_0": 66}

FORMATS: dict[str, Fraction] = {
    **{name: Fraction(8 * size, 32) for name, size in _BLOCK_32.items()},
    **{name: Fraction(8 * size, 256) for name, size in _BLOCK_256.items()},
    **{d.value: Fraction(8 * d.bytes) for d in DType},
    "int8": Fraction(8),
    "int4": Fraction(4),
}


def register_format(name: str, bits_per_weight: Fraction | int) -> None:
    """Add a storage format; raises `WorkError` if the name is taken."""
    if name in FORMATS:
        raise WorkError(f"storage format '{name}' is registered already; choose another name")
    FORMATS[name] = Fraction(bits_per_weight)


def bits_per_weight(name: str) -> Fraction:
    """Return the bits of one weight; raises `WorkError` for a format that is not registered."""
    if name.lower() not in FORMATS:
        hint = nearest(name, FORMATS)
        raise WorkError(f"unknown storage format '{name}'{hint}; add it with register_format")
    return FORMATS[name.lower()]


def storage_format(name: str, weights: Mapping[str, Entry]) -> str:
    """Return the format that a weight is stored in; one made of others has theirs if they agree."""
    entry = weights[name]
    if entry.format or entry.expr is None:
        return entry.format or entry.type.dtype.value
    sources = {storage_format(s, weights) for s in entry.expr.sources}
    exact = entry.expr.fn in ("alias", "concat", "transpose")
    return sources.pop() if exact and len(sources) == 1 else entry.type.dtype.value


def stored_bytes(entry: Entry, bits: Fraction) -> int:
    """Return the bytes of a whole weight at so many bits each; its size must be in numbers."""
    count = product(entry.type.dims)
    if not isinstance(count, int):
        raise WorkError(f"the weight {entry.type} has a symbolic size; give it numbers")
    return -(-count * bits.numerator // (8 * bits.denominator))
