"""Presets: pipelines by name, each a YAML file in `presets/`.

A preset that is named but not built yet has the key `later`, and says so when it is asked for.
"""

from functools import cache
from pathlib import Path

from elidir.passes.errors import PipelineError
from elidir.passes.spelling import Item, parse_yaml

_FOLDER = Path(__file__).with_name("presets")


@cache
def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, those that come later too."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_preset(name: str) -> tuple[Item, ...]:
    """Return the steps of a preset; raises `PipelineError` for one that comes later."""
    text = (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    head, _, reason = text.partition("later:")
    if reason and not head.strip():
        raise PipelineError(
            f"preset '{name}' comes later: {reason.strip()}; use 'lossless' until then"
        )
    return parse_yaml(text)
