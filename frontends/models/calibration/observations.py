"""Observations: what one run over calibration data saw, where it comes from, and its file.

The file is safetensors: arrays by observation and weight, and the provenance as JSON in its header.
It is refused for any network but the one that it was recorded on, which is told by the names, types
and contents of its weights.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from elidir.frontends.calibration.errors import CalibrationError
from elidir.frontends.calibration.feeds import Feeds
from elidir.frontends.calibration.recorders import RECORDERS
from elidir.ir import Module, nearest

FORMAT = "2"


@dataclass(frozen=True)
class Provenance:
    """Where observations come from.

    Args:
        network: hash of the weights of the network.
        data: hash of the calibration data.
        source: what the data were, in words.
        tokens: how many there were.
        recorded: when, in UTC, to the second (ISO 8601).
        elidir: version that recorded them.
    """

    network: str
    data: str
    source: str
    tokens: int
    recorded: str
    elidir: str

    @classmethod
    def of(cls, module: Module, feeds: Feeds) -> "Provenance":
        """Return the provenance of what is recorded now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = (feeds.sha, feeds.source, feeds.tokens, now, version("elidir"))
        return cls(network_hash(module), *made)

    def __str__(self) -> str:
        return f"{self.source}, {self.tokens:,} tokens (hash {self.data}, {self.recorded})"


@dataclass(frozen=True, eq=False)
class Observations:
    """What was observed, by the names that passes need, with its provenance."""

    found: Mapping[str, Any]
    provenance: Provenance

    def check(self, module: Module, needs: tuple[str, ...] = ()) -> None:
        """Raise `CalibrationError` unless they are of this network and hold what is needed."""
        if self.provenance.network != network_hash(module):
            raise CalibrationError(
                "the observations were recorded on another network; calibrate this one"
            )
        if lacking := [n for n in needs if n not in self.found]:
            raise CalibrationError(f"the observations lack '{lacking[0]}'; calibrate again")


def network_hash(module: Module) -> str:
    """Return a hash of the stored weights of a module: names, types and contents."""
    stored = (f"{n}: {e.type} {e.sha}" for n, e in module.weights.items() if e.expr is None)
    return hashlib.sha256("\n".join(sorted(stored)).encode()).hexdigest()[:16]


def write_observations(observations: Observations, path: Path) -> None:
    """Write observations to a file, which appears when it is whole; raises `CalibrationError`."""
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    for name, found in observations.found.items():
        made = RECORDERS[name]().to_arrays(found)
        arrays |= {f"{name}/{key}": np.array(a, order="C") for key, a in made.items()}
    head = {"format": FORMAT, "provenance": json.dumps(asdict(observations.provenance))}
    try:
        _write(save(arrays, metadata=head), path)
    except OSError as error:
        raise CalibrationError(
            f"cannot write {path}: {error.strerror or error}; name another file"
        ) from None


def _write(data: bytes, path: Path) -> None:
    made = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        made.write_bytes(data)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def read_observations(path: Path) -> Observations:
    """Read a file of observations; raises `CalibrationError` if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            head = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CalibrationError(
            f"cannot read the observations {path}: {error}; make them by `elidir calibrate`"
        ) from None
    if head.get("format") != FORMAT:
        raise CalibrationError(
            f"{path} holds no observations of format {FORMAT}; make them by `elidir calibrate`"
        )
    return Observations(_found(arrays), Provenance(**json.loads(head["provenance"])))


def _found(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    by_name: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        name, _, rest = key.partition("/")
        by_name.setdefault(name, {})[rest] = array
    if unknown := set(by_name) - set(RECORDERS):
        name = min(unknown)
        raise CalibrationError(f"unknown observation '{name}'{nearest(name, RECORDERS)}")
    return {name: RECORDERS[name]().from_arrays(part) for name, part in by_name.items()}
