"""Running a network over calibration data, with recorders on its values.

`observations_for` is what compiling asks: what a pipeline needs, from the data that the user gave,
from a file of observations, or from the bundled text. `calibrate` records all that can be recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elidir.backends import Instruction, Watch, Weights, WeightStore, lower
from elidir.frontends.calibration.errors import CalibrationError
from elidir.frontends.calibration.feeds import Feeds, bundled_data, check_ids, make_feeds
from elidir.frontends.calibration.observations import (
    Observations,
    Provenance,
    read_observations,
)
from elidir.frontends.calibration.recorders import RECORDERS, Recorder
from elidir.frontends.program import vocabulary_of
from elidir.ir import Module, nearest
from elidir.passes import CLEAN_UP, Pipeline, framed

if TYPE_CHECKING:
    from elidir.frontends.program import Program


@dataclass(frozen=True, eq=False)
class Network:
    """A raised module with its weights, and what it reads.

    Args:
        module: the module as raised.
        store: its weights.
        inputs: for each parameter of `@forward` the model's own input, "" for none.
        tokenizer: makes token ids of text; None for a model without one.
        backends: what runs.
    """

    module: Module
    store: WeightStore
    inputs: tuple[str, ...]
    tokenizer: Any = None
    backends: tuple[str, ...] = ("cpu",)

    @classmethod
    def of(cls, program: "Program", tokenizer: Any = None) -> "Network":
        """Return the network that a program was compiled from."""
        inputs, backends = program.face.inputs, program.options.backends
        return cls(program.raised, program.store, inputs, tokenizer, backends)

    @cached_property
    def clean(self) -> Module:
        """The module as pipelines clean it up, whose weights have the names that passes see."""
        return Pipeline.parse(CLEAN_UP).run(self.module).module

    def feeds(self, data: Any) -> Feeds:
        """Return calibration data as inputs of the network."""
        params = self.module["forward"].region.params
        feeds = make_feeds(
            data, params, self.inputs, tokenizer=self.tokenizer, positions=self.positions
        )
        check_ids(feeds, vocabulary_of(self.module))
        return feeds

    @property
    def positions(self) -> int | None:
        """Tokens that one call may have at most; None for any number."""
        length = self.module["forward"].region.params[0].type.dims[1:2]
        if length and isinstance(length[0], int):
            return length[0]
        bounds = [self.module.symbols[str(d)].hi for d in length if str(d) in self.module.symbols]
        return bounds[0] if bounds else None


@dataclass(frozen=True)
class Observed:
    """What was observed for a pipeline, by name, and where it comes from; None for nothing."""

    found: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be said about it."""
        return (f"calibrated on {self.provenance}",) if self.provenance else ()


def observations_for(pipeline: Pipeline, network: Network, data: Any = None) -> Observed:
    """Return what the passes of a pipeline need.

    Args:
        pipeline: whose passes need data, or do not.
        network: that is observed.
        data: see `make_feeds`; or the `Path` of a file of observations, which ends in
            .safetensors; or `Observations`. None takes the bundled text.

    Raises:
        ElidirError: the data cannot be used, or the observations are of another network.
    """
    needs = pipeline.needed()
    if not needs:
        return Observed()
    if isinstance(data, Path) and data.suffix == ".safetensors":
        data = read_observations(data)
    if isinstance(data, Observations):
        data.check(network.module, needs)
        return Observed(data.found, data.provenance)
    feeds = _bundled(network, needs) if data is None else network.feeds(data)
    made = observe(network, feeds, needs)
    return Observed(made.found, made.provenance)


def check_data(pipeline: Any, data: Any) -> None:
    """Raise `CalibrationError` if passes of a pipeline need data and none was given."""
    needs = framed(pipeline).needed()
    if needs and data is None:
        raise _no_data(needs)


def _no_data(needs: Sequence[str]) -> CalibrationError:
    return CalibrationError(
        f"the pipeline needs {', '.join(needs)}, which are recorded on data; give "
        "calibration= token ids, or a list of dicts with the inputs of some usual calls"
    )


def _bundled(network: Network, needs: tuple[str, ...]) -> Feeds:
    names = [p.name for p in network.module["forward"].region.params]
    if network.tokenizer is None or names != ["ids", "valid", "pos"]:
        raise _no_data(needs)
    feeds = network.feeds(bundled_data(network.tokenizer, network.positions))
    return replace(feeds, source="the bundled text")


def calibrate(network: Network, data: Any) -> Observations:
    """Return all that can be observed of a network over some data."""
    return observe(network, network.feeds(data), tuple(RECORDERS))


def observe(network: Network, feeds: Feeds, needs: Sequence[str]) -> Observations:
    """Run a network over calibration data and return what recorders saw.

    Raises:
        ElidirError: nothing records what is needed, or weights or values are no numbers.
    """
    for name in needs:
        if name not in RECORDERS:
            raise CalibrationError(f"nothing records '{name}'{nearest(name, RECORDERS)}")
    recorders = {name: RECORDERS[name]() for name in needs}
    clean = network.clean
    program = lower(clean["forward"], clean, network.store, network.backends)
    weights = Weights(network.store, clean.weights)
    watch = _watching(tuple(recorders.values()), weights)
    for call in feeds.calls:
        program.watched(watch, *call)
    found = {name: r.observation(weights) for name, r in recorders.items()}
    return Observations(found, Provenance.of(network.module, feeds))


def _watching(recorders: tuple[Recorder, ...], weights: Weights) -> Watch:
    def watch(instruction: Instruction, arguments: list[Any], found: Any) -> None:
        for each in recorders:
            if each.wants(instruction.op):
                each.see(instruction, arguments, found, weights)

    return watch
