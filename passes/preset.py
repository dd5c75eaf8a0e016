"""Presets: pipelines by name, each a YAML file in `presets/` that opens with what it promises.

What their steps mean is the pipeline's affair; here files become steps.
"""

from functools import cache
from pathlib import Path

from elidir.passes.spelling import Item, parse_yaml

_FOLDER = Path(__file__).with_name("presets")


@cache
def preset_names() -> tuple[str, ...]:
    """Return the names of all presets."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_preset(name: str) -> tuple[Item, ...]:
    """Return the steps of a preset."""
    return parse_yaml((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
