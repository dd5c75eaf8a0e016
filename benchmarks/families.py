"""What elidir makes of each family of models: a table in markdown, one line for each.

A line says whether a family was captured and raised, its layers and bodies, attention and opaque
ops, whether it gets a cache (or why not), and the largest error against eager at valid positions,
at a batch and length other than those captured. The models are those of the tests' zoo: tiny,
random, of two layers. Run it with `python -m benchmarks.families [NAME ...]`. Nothing is timed
here.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import torch

from elidir.frontends.capture import capture
from elidir.frontends.raising import raise_capture
from elidir.ir import ElidirError, Opaque, flatten
from tests.frontends.families import Family, arguments, at_valid, eager
from tests.zoo import NAMED, OTHERS, Entry

EXAMPLE, SIZE = (3, 7), (2, 11)
STATIC = (2, 11)
WIDTH = 160


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    family: str
    captured: str = "no"
    raised: str = "no"
    layers: int | str = ""
    bodies: int | str = ""
    attention: int | str = ""
    opaque: str = ""
    cache: str = ""
    error: str = ""


def survey(entry: Entry) -> Row:
    """Capture, raise and run one family; what fails is said in the row."""
    model = entry.factory()
    example = entry.example(*EXAMPLE) if entry.needs_example else None
    kind = "yes"
    try:
        captured = capture(model, example)
    except ElidirError:
        kind = f"at {STATIC[0]} x {STATIC[1]} only"
        try:
            captured = capture(model, example, static=STATIC)
        except ElidirError as error:
            return Row(entry.name, cache=_short(str(error)))
    return _raised(Family(entry, model, raise_capture(captured, entry.name)), kind)


def _raised(known: Family, kind: str) -> Row:
    region = flatten(known.module["forward"])
    kinds = Counter(op.kind for op in region.ops)
    opaque = Counter(op.target for op in region.ops if isinstance(op, Opaque))
    names = ", ".join(f"{n} {t.removeprefix('aten.')}" for t, n in opaque.most_common())
    return Row(
        known.entry.name,
        kind,
        "yes",
        len(list(known.module.layers())),
        len(known.module.bodies),
        kinds["attention"],
        names or "none",
        _cache(known),
        _error(known),
    )


def _cache(known: Family) -> str:
    """Say whether `@step` can be derived, or the first reason why not."""
    if "step" in known.stepped.module.functions:
        return "yes"
    first = known.stepped.missed[0]
    where = f" ({first.at})" if first.at and not first.at.startswith("@") else ""
    return _short(f"no: {first.reason}{where}")


def _short(text: str) -> str:
    """One line of a table cell."""
    text = text.splitlines()[0].replace("|", "/")
    return text if len(text) <= WIDTH else f"{text[:WIDTH].rsplit(' ', 1)[0]} .."


def _error(known: Family) -> str:
    inputs = known.entry.example(*SIZE)
    try:
        found = known.forward(*arguments(known, inputs))[0]
    except ElidirError as error:
        return _short(str(error))
    apart = (found - eager(known.model, inputs)[0]).abs()
    return f"{float(at_valid(apart, inputs).max()):.0e}"


# ---- the table


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(c) for c in cells)} |"


def main(names: Sequence[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    entries = NAMED | OTHERS
    head = [f.name for f in fields(Row)]
    print(_line(head), _line(["---"] * len(head)), sep="\n")
    for name in names or entries:
        print(_line(astuple(_safely(entries[name]))), flush=True)


def _safely(entry: Entry) -> Row:
    """A family that breaks something is a finding, and the others are still wanted."""
    try:
        return survey(entry)
    except Exception as error:  # this is what is being surveyed
        return Row(entry.name, cache=_short(f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="families of the zoo; all if none is given")
    main(parser.parse_args().names)
