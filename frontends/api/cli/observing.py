"""What the passes that a verb runs need to know, for a model or for a file of IR.

Recorded as compiling does it: on a model's calibration data or the bundled text. A file of IR that
names no model has no weights, so random ones see random inputs. Nothing is loaded if no pass needs
data.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from elidir.cli import options as opts

if TYPE_CHECKING:
    from elidir.frontends import Observed
    from elidir.ir import Module
    from elidir.passes import Pipeline


def compiled_simply(name: str, notify: Any, backend: str = "cpu") -> tuple[Any, Any]:
    """Return a model compiled as simply as can be, or as saved, and its usual pipeline."""
    from elidir.cache import compile_named
    from elidir.frontends import is_artifact
    from elidir.saving import load

    chosen = opts.compile_options("", "cpu", backend, None)
    if is_artifact(Path(name).expanduser()):
        made = load(name, backend=chosen.backends)
        return made, made.program.options.pipeline
    return compile_named(name, chosen, notify), "lossless"


def seen_by_model(steps: "Pipeline", compiled: Any, calibration: Path | None) -> "Observed":
    """Return what the passes need to know of a compiled model."""
    from elidir.frontends import Network, observations_for

    network = Network.of(compiled.program, compiled.tokenizer)
    return observations_for(steps, network, calibration)


def seen_in_text(steps: "Pipeline", module: "Module", calibration: Path | None) -> "Observed":
    """Return what the passes need to know of a file of IR that names no model."""
    from elidir.frontends import Network, Oracle, observations_for

    oracle, forward = Oracle.of(module), module["forward"]
    names = tuple(p.name for p in forward.region.params)
    network = Network(module, oracle.store, names, None, ())
    drawn = [dict(zip(names, oracle.feed(forward), strict=True))]
    return observations_for(steps, network, drawn if calibration is None else calibration)


def seen_in_file(
    steps: "Pipeline", module: "Module", data: dict[str, Any], calibration: Path | None, notify: Any
) -> dict[str, Any]:
    """Return what the passes need to know of a file of IR, by the data that its header holds."""
    if not steps.needed():
        return {}
    if "model" not in data:
        return dict(seen_in_text(steps, module, calibration).found)
    compiled, _ = compiled_simply(data["model"], notify)
    return dict(seen_by_model(steps, compiled, calibration or recorded(data)).found)


def recorded(data: dict[str, Any]) -> Path | None:
    """Return the calibration that a reproducer was made with; None for the bundled text."""
    return Path(data["calibration"]) if data.get("calibration") else None
