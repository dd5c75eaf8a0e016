"""What elidir makes of each family of models: a table in markdown, one line for each.

Run: `python -m benchmarks.families [NAME ...]`; without names, all of the tests' zoo (tiny random
models of two layers). A line says whether the family was captured and raised, its layers and bodies,
attention and opaque ops, whether it gets a cache (or why not), and the largest error against eager at
a batch and length other than those captured, at valid positions. Nothing is timed here.
"""

import argparse
import inspect
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from elidir.backends import WeightStore, lower
from elidir.frontends.capture import capture
from elidir.frontends.raising import Raised, raise_capture
from elidir.ir import ElidirError, Module, Opaque, flatten
from elidir.passes import Pipeline
from tests.zoo import NAMED, OTHERS, Entry, Inputs

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
    return _raised(entry, model, raise_capture(captured, entry.name), kind)


def _raised(entry: Entry, model: nn.Module, raised: Raised, kind: str) -> Row:
    module = raised.module
    region = flatten(module["forward"])
    kinds = Counter(op.kind for op in region.ops)
    opaque = Counter(op.target for op in region.ops if isinstance(op, Opaque))
    names = ", ".join(f"{n} {t.removeprefix('aten.')}" for t, n in opaque.most_common())
    return Row(
        entry.name,
        kind,
        "yes",
        len(list(module.layers())),
        len(module.bodies),
        kinds["attention"],
        names or "none",
        _cache(module),
        _error(entry, model, raised),
    )


def _cache(module: Module) -> str:
    """Say whether `@step` can be derived, or the first reason why not."""
    result = Pipeline.parse("incrementalize").run(module)
    if "step" in result.module.functions:
        return "yes"
    first = result.missed[0]
    where = f" ({first.at})" if first.at and not first.at.startswith("@") else ""
    return _short(f"no: {first.reason}{where}")


def _short(text: str) -> str:
    """One line of a table cell."""
    text = text.splitlines()[0].replace("|", "/")
    return text if len(text) <= WIDTH else f"{text[:WIDTH].rsplit(' ', 1)[0]} .."


# ---- numbers


def _error(entry: Entry, model: nn.Module, raised: Raised) -> str:
    module, inputs = raised.module, entry.example(*SIZE)
    try:
        run = lower(module["forward"], module, WeightStore(raised.tensors), ("reference",))
        found = run(*_arguments(raised, inputs))[0]
    except ElidirError as error:
        return _short(str(error))
    wanted = _eager(model, inputs)
    return f"{_largest(found, wanted, inputs):.0e}"


def _arguments(raised: Raised, inputs: Inputs) -> list[Tensor]:
    params = raised.module["forward"].region.params
    ids = next(iter(inputs.values()))
    found = []
    for param, name in zip(params, raised.inputs, strict=True):
        if name in inputs:
            value = inputs[name]
        elif param.name == "pos":
            value = torch.arange(ids.shape[1]).expand(ids.shape)
        else:
            value = torch.ones_like(ids) if "valid" in param.name else _left_out(name, inputs)
        found.append(value.bool() if param.name == "valid" else value)
    return found


def _left_out(name: str, inputs: Inputs) -> Tensor:
    """An input that the model itself would fill in: all of a decoder valid, token types 0."""
    if name == "decoder_attention_mask":
        return torch.ones_like(inputs["decoder_input_ids"])
    return torch.zeros_like(next(iter(inputs.values())))


def _eager(model: nn.Module, inputs: Inputs) -> Tensor:
    takes = inspect.signature(model.forward).parameters
    options = {"use_cache": False} if "use_cache" in takes else {}
    with torch.no_grad():
        first: Tensor = pytree.tree_leaves(model(**inputs, **options))[0]
    return first


def _largest(found: Tensor, wanted: Tensor, inputs: Inputs) -> float:
    apart, mask = (found - wanted).abs(), inputs.get("attention_mask")
    if mask is not None and mask.shape == apart.shape[:2]:
        apart = apart[mask.bool()]
    return float(apart.max())


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
