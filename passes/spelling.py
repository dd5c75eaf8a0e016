"""How a pipeline is written: text and YAML to a plain tree, and back.

Text: `cse, prune{keep=0.5 at=(15, 20)}, fixpoint[4](canonicalize, dce)`. YAML: a list whose items
are names, `name: {option: value}`, `fixpoint: {limit: 4, passes: [..]}` and `extends: preset`. A
tree knows neither passes nor types of options; `Pipeline` builds the one from the other.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from elidir.ir import split
from elidir.passes.errors import PipelineError


@dataclass(frozen=True)
class Named:
    """A pass or a preset by name, with options as plain data."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loop:
    """Steps that are repeated until nothing changes, `limit` times at most."""

    limit: int
    items: tuple["Item", ...]


Item: TypeAlias = Named | Loop

_NAME = r"[A-Za-z][\w\-]*"
_KEYWORDS = {"true": True, "false": False, "none": None, "inf": float("inf")}

# ---- text


def parse_text(text: str) -> tuple[Item, ...]:
    """Return the tree of a pipeline's text; raises `PipelineError` for what it cannot read."""
    return tuple(_parse_item(part) for part in split(text.strip()))


def _parse_item(text: str) -> Item:
    if match := re.fullmatch(r"fixpoint\[(\d+)\]\((.*)\)", text, re.DOTALL):
        return Loop(int(match[1]), parse_text(match[2]))
    match = re.fullmatch(rf"({_NAME})\s*(?:\{{(.*)\}})?", text, re.DOTALL)
    if not match:
        raise PipelineError(
            f"cannot read '{text}' in a pipeline; write name{{option=value}} or fixpoint[4](a, b)"
        )
    pairs = [p for p in split(match[2] or "", " ") if p]
    return Named(match[1], dict(_parse_pair(match[1], p) for p in pairs))


def _parse_pair(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+", key):
        raise PipelineError(f"cannot read '{text}' in the options of '{name}'; write option=value")
    return key, _parse_value(value)


def _parse_value(text: str) -> Any:
    if text.startswith("(") and text.endswith(")"):
        return [_parse_value(p) for p in split(text[1:-1].removesuffix(","))]
    if text in _KEYWORDS:
        return _KEYWORDS[text]
    if text.startswith('"'):
        return _parse_string(text)
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _parse_string(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise PipelineError(f"the string {text} has no end; close it with a quote") from None


def format_text(items: Iterable[Item]) -> str:
    """Return the text of a tree, which `parse_text` reads back."""
    return ", ".join(map(_format_item, items))


def _format_item(item: Item) -> str:
    if isinstance(item, Loop):
        return f"fixpoint[{item.limit}]({format_text(item.items)})"
    pairs = " ".join(f"{k}={_format_value(v)}" for k, v in item.options.items())
    return f"{item.name}{{{pairs}}}" if pairs else item.name


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(_format_value, value))})"
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return _format_string(value) if isinstance(value, str) else repr(value)


def _format_string(value: str) -> str:
    bare = re.fullmatch(rf"{_NAME}", value) and value.lower() not in {*_KEYWORDS, "nan", "infinity"}
    # A backslash is written as \u005c: `split` takes a quote after a backslash for an escaped one.
    return value if bare else json.dumps(value).replace("\\\\", "\\u005c")


# ---- YAML


def parse_yaml(text: str) -> tuple[Item, ...]:
    """Return the tree of a pipeline in YAML; raises `PipelineError`."""
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PipelineError(f"the pipeline is not YAML: {' '.join(str(error).split())}") from None
    return parse_data(data)


def parse_data(data: Any) -> tuple[Item, ...]:
    """Return the tree of a pipeline given as lists and mappings."""
    if isinstance(data, dict) and set(data) <= {"extends", "passes"}:
        base = (Named(str(data["extends"])),) if "extends" in data else ()
        return (*base, *parse_data(data.get("passes")))
    if data is not None and not isinstance(data, list):
        raise PipelineError(
            "a pipeline in YAML is a list of passes, or has the keys extends, passes"
        )
    return tuple(map(_data_item, data or ()))


def _data_item(data: Any) -> Item:
    if isinstance(data, str):
        return Named(data)
    if not isinstance(data, dict) or len(data) != 1:
        raise PipelineError(
            f"cannot read {data!r} in a pipeline; write a name, or name: {{option: value}}"
        )
    ((name, options),) = data.items()
    if name == "extends":
        return Named(str(options))
    if name == "fixpoint":
        return _data_loop(options)
    if options is not None and not isinstance(options, dict):
        raise PipelineError(f"the options of '{name}' are {options!r}; write {{option: value}}")
    return Named(str(name), {str(k): v for k, v in (options or {}).items()})


def _data_loop(options: Any) -> Loop:
    if not isinstance(options, dict) or set(options) != {"limit", "passes"}:
        raise PipelineError("a fixpoint in YAML is {limit: 4, passes: [..]}")
    if type(options["limit"]) is not int:
        raise PipelineError(f"the limit of a fixpoint is {options['limit']!r}; give a whole number")
    return Loop(options["limit"], parse_data(options["passes"]))


def format_yaml(items: Iterable[Item]) -> str:
    """Return the YAML of a tree, which `parse_yaml` reads back."""
    import yaml

    return yaml.safe_dump(to_data(items), sort_keys=False, default_flow_style=None)


def to_data(items: Iterable[Item]) -> list[Any]:
    """Return a tree as lists and mappings."""
    return [_item_data(i) for i in items]


def _item_data(item: Item) -> Any:
    if isinstance(item, Loop):
        return {"fixpoint": {"limit": item.limit, "passes": to_data(item.items)}}
    return {item.name: item.options} if item.options else item.name
