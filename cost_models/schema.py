"""From YAML to frozen dataclasses, strictly: the annotations of the fields are the schema.

`build` refuses what is missing, misspelt or of another type, in one sentence that names the file,
the field and the nearest name. Nothing here knows what a target or a model is, except that a
`Quantity` is a number with its provenance.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from elidir.cost_models.errors import CostError
from elidir.ir import nearest

T = TypeVar("T")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast


class Provenance(Enum):
    """Where a number comes from."""

    DATASHEET = "datasheet"
    MEASURED = "measured"
    ASSUMED = "assumed"


@dataclass(frozen=True)
class Quantity:
    """A number with its provenance; the unit is in the name of the field that holds it."""

    value: float
    kind: Provenance
    source: str


@dataclass(frozen=True)
class Place:
    """Where in which file a value stands, and the error to raise about it."""

    file: str
    error: type[CostError]
    field: str = ""

    def at(self, name: str) -> "Place":
        """Return the place of a field inside this one."""
        return dataclasses.replace(self, field=f"{self.field}.{name}" if self.field else name)

    def fail(self, message: str) -> CostError:
        """Return the error, to be raised."""
        return self.error(f"{self.file}: {message}")

    def wrong(self, message: str) -> CostError:
        """Return the error about the field itself, to be raised."""
        return self.fail(f"'{self.field}' {message}")


def read_yaml(path: Path, place: Place) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises the place's error if there is none."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, UnicodeDecodeError) as error:
        raise place.fail(f"cannot be read ({error}); give the path of a YAML file") from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise place.fail(f"is not YAML ({detail}); mend it there") from None
    if not isinstance(data, dict):
        raise place.fail("holds no fields; write `name: ...` and the others, one a line")
    return data


def build(cls: type[T], data: object, place: Place) -> T:
    """Return a `cls` from a mapping of its fields; raises the place's error if one is wrong."""
    if not isinstance(data, Mapping):
        raise place.wrong(f"is {data!r}; it must be a mapping with the fields of its kind")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    _known(data, fields, place)
    hints, values = typing.get_type_hints(cls), {}
    for name, f in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], place.at(name))
        else:
            values[name] = _default(f, place)
    return cls(**values)


def _known(data: Mapping[Any, object], fields: Collection[str], place: Place) -> None:
    for key in map(str, data):
        if key not in fields:
            raise place.fail(f"unknown field '{place.at(key).field}'{nearest(key, fields)}")


def _default(f: "dataclasses.Field[Any]", place: Place) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    raise place.fail(f"the field '{place.at(f.name).field}' is missing; add it")


def _convert(hint: Any, item: object, place: Place) -> Any:
    if _is_union(hint):
        if item is None:
            return None
        (hint,) = (a for a in typing.get_args(hint) if a is not type(None))
    if hint is Quantity:
        return _quantity(item, place)
    if typing.get_origin(hint) is tuple:
        return _list(typing.get_args(hint)[0], item, place)
    if typing.get_origin(hint) is dict:
        return _table(typing.get_args(hint)[1], item, place)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), item, place)
    return _scalar(hint, item, place)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _quantity(item: object, place: Place) -> Quantity:
    if not isinstance(item, Mapping):
        raise place.wrong(
            f"is {item!r}; write {{value: .., kind: datasheet|measured|assumed, source: ..}}, "
            "so that the number says where it comes from"
        )
    raw, wanted = {str(k): v for k, v in item.items()}, ("value", "kind", "source")
    _known(raw, wanted, place)
    for key in wanted:
        if raw.get(key) in (None, ""):
            raise place.fail(f"the field '{place.at(key).field}' is missing; add it")
    kinds = {k.value: k for k in Provenance}
    if raw["kind"] not in kinds:
        raise place.at("kind").wrong(f"is {raw['kind']!r}{nearest(str(raw['kind']), kinds)}")
    value = number(raw["value"], place.at("value"))
    return Quantity(value, kinds[raw["kind"]], _scalar(str, raw["source"], place.at("source")))


def number(item: object, place: Place) -> float:
    """Return a number above zero; raises the place's error otherwise."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise place.wrong(f"is {item!r}, not a number; the unit is in the name of the field")
    if not 0 < item < float("inf"):
        raise place.wrong(f"is {item!r}, not above zero; leave the field out if it is unknown")
    return item


def _list(kind: Any, item: object, place: Place) -> tuple[Any, ...]:
    if not isinstance(item, list):
        raise place.wrong(f"is {item!r}; write a list: [.., ..]")
    return tuple(_scalar(kind, i, place) for i in item)


def _table(kind: Any, item: object, place: Place) -> dict[str, Any]:
    if not isinstance(item, Mapping) or not item:
        raise place.wrong(f"is {item!r}; write a mapping with at least one name")
    return {str(k): build(kind, v, place.at(str(k))) for k, v in item.items()}


def _scalar(kind: Any, item: object, place: Place) -> Any:
    if kind is float and isinstance(item, int | float) and not isinstance(item, bool):
        return float(item)
    if type(item) is kind:
        return item
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    raise place.wrong(f"is {item!r}; it must be {words[kind]}")
