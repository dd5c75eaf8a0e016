"""From a model to a program that runs: capture, raise, pipeline, weights, lowering.

A `Program` is all that compiling yields. It is data and executables; the face that a user holds is
`elidir.Compiled`. The model itself is read, never changed and never kept.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from elidir.backends import Executable, WeightStore, lower
from elidir.backends.runtime import Prefill
from elidir.frontends.face import Face, face_of
from elidir.frontends.signature import SizesError
from elidir.ir import DType, Embed, Function, Module
from elidir.passes import (
    History,
    PipelineResult,
    Verify,
    embedding_of,
    framed,
    over_embeddings,
)

if TYPE_CHECKING:
    from elidir.frontends.calibration import Provenance
    from elidir.frontends.capture import Capture

UNBOUNDED = 1 << 20


@dataclass(frozen=True)
class Options:
    """What a model is compiled for, and with what.

    Args:
        target: the hardware that plans and costs are for.
        pipeline: the passes, as the user named them.
        backends: what runs, in order of preference.
        dtype: floats of the program; None keeps the model's.
        dynamic: whether batch and length may vary.
        static: batch and length, for a model that can be captured no other way.
    """

    target: str = "cpu"
    pipeline: Any = "lossless"
    backends: tuple[str, ...] = ("cpu",)
    dtype: DType | None = None
    dynamic: bool = True
    static: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled model: its modules, its weights, how it is called, and what was done to it.

    `calibration` is where the observations come from that its passes used, None if none did.
    """

    raised: Module
    module: Module
    store: WeightStore
    face: Face
    options: Options
    result: PipelineResult
    history: Sequence[tuple[str, Module]]
    remarks: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    calibration: "Provenance | None" = None
    _reading: dict[str, Executable] = field(default_factory=dict, repr=False)

    @cached_property
    def forward(self) -> Executable:
        """`@forward`, lowered when it is first run."""
        return self._lower("forward")

    @cached_property
    def step(self) -> Executable | None:
        """`@step`, lowered when it is first run; None for a model without a cache."""
        return self._lower("step") if "step" in self.module.functions else None

    @cached_property
    def prefill(self) -> Prefill | None:
        """`@prefill`, which drops tokens of a prompt; None where no pass has made one."""
        if "prefill" not in self.module.functions:
            return None
        return Prefill.over(self._lower("prefill"), self.module.symbols)

    @cached_property
    def embedding(self) -> Executable:
        """The embeddings of token ids, lowered when they are first made."""
        return self._lower("embed", embedding_of(self.module["forward"]))

    def reading(self, name: str) -> Executable:
        """Return a function over embeddings in the place of token ids, lowered at first use."""
        if name not in self._reading:
            function = over_embeddings(self.module[name])
            self._reading[name] = self._lower(f"{name} over embeddings", function)
        return self._reading[name]

    def _lower(self, name: str, function: Function | None = None) -> Executable:
        started = time.perf_counter()
        function = function or self.module[name]
        options = self.options
        with _one_thread():
            made = lower(function, self.module, self.store, options.backends, options.dtype)
        self.seconds[f"lower @{name}"] = time.perf_counter() - started
        return made

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids; see `vocabulary_of`."""
        return vocabulary_of(self.module)

    @property
    def max_positions(self) -> int | None:
        """Positions that the model has; None for any number."""
        length = self._length()
        if length is None or isinstance(length, int):
            return length
        bound = self.module.symbols[str(length)].hi
        return None if bound is None or bound >= UNBOUNDED else bound

    def _length(self) -> Any:
        params = {p.name: p for p in self.module["forward"].region.params}
        ids = params.get("decoder_input_ids") or params.get("ids")
        return None if ids is None else ids.type.dims[1]


def vocabulary_of(module: Module) -> int | None:
    """Return the number of token ids: rows of the table that `@forward` looks its ids up in."""
    region = module["forward"].region
    tables = [o.table for o in region.ops if isinstance(o, Embed) and o.ids is region.params[0]]
    size = tables[0].type.dims[0] if tables else None
    return size if isinstance(size, int) else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Prepare weights on one thread: in so many small steps, several mostly wait for each other.

    On two busy cores SmolLM2 takes 13 s of processor time on two threads, and 1.2 s on one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build(
    model: Any,
    options: Options,
    example_inputs: Any = None,
    storages: Mapping[str, Any] | None = None,
    *,
    calibration: Any = None,
    tokenizer: Any = None,
    reader: Module | None = None,
) -> Program:
    """Compile a model.

    Args:
        model: an `nn.Module` or a function of tensors.
        options: see `Options`.
        example_inputs: inputs of one usual call; models of transformers need none.
        storages: by parameter name, weights in the format they were stored in.
        calibration: data for passes that need some: texts, token ids, calls, or a file of
            observations; see `elidir.frontends.calibration`.
        tokenizer: for texts.
        reader: the module that reads what this one makes, if another does.
    """
    from elidir.frontends.calibration import Network, observations_for
    from elidir.frontends.raising import raise_capture
    from elidir.frontends.sources import weight_sources

    pipeline = framed(options.pipeline)
    seconds: dict[str, float] = {}
    with _clock(seconds, "capture"):
        captured = _captured(model, options, example_inputs)
    with _clock(seconds, "raise"):
        raised = raise_capture(captured, _name(model))
    with _clock(seconds, "hash weights"):
        sources, entries = weight_sources(raised, storages or {})
    module, store = replace(raised.module, weights=entries), WeightStore(sources)
    network = Network(module, store, raised.inputs, tokenizer, options.backends)
    with _clock(seconds, "calibrate"):
        observed = observations_for(pipeline, network, calibration)
    history = History()
    given = {"target": options.target, "observations": observed.found, "reader": reader}
    with _clock(seconds, "passes"):
        result = pipeline.run(module, instruments=[Verify(), history], **given)
    face = face_of(model, captured, raised.inputs)
    rows = tuple(history.rows)
    remarks = (*captured.remarks, *observed.remarks, *_not_applied(model))
    made = (face, options, result, rows, remarks, seconds, observed.provenance)
    return Program(module, result.module, store, *made)


def _captured(model: Any, options: Options, example_inputs: Any) -> "Capture":
    """Capture a model; one that exports with no length but stated ones gets a usual length."""
    from elidir.frontends.capture import capture
    from elidir.frontends.feeding import usual_sizes

    try:
        return capture(model, example_inputs, dynamic=options.dynamic, static=options.static)
    except SizesError as error:
        refused = error.message
    sizes = usual_sizes(model)
    made = capture(model, static=sizes)
    remark = f"captured for {sizes[0]} x {sizes[1]} tokens, padded if there are less: {refused}"
    return replace(made, remarks=(remark, *made.remarks))


@contextmanager
def _clock(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def _name(model: Any) -> str:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None) or type(model).__name__.lower()
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in str(kind))


# ---- what a model of transformers says of itself


_NOT_BUILT = (
    *("num_beams", "no_repeat_ngram_size", "suppress_tokens", "begin_suppress_tokens"),
    *("bad_words_ids", "forced_decoder_ids", "min_length", "encoder_no_repeat_ngram_size"),
)


def _not_applied(model: Any) -> list[str]:
    """Return remarks on generation defaults of the model that change tokens and are not built."""
    generation = getattr(model, "generation_config", None)
    stated = generation.to_diff_dict() if generation is not None else {}
    asked = [n for n in _NOT_BUILT if stated.get(n) not in (None, 0, 1, [])]
    return [f"generate does not apply the model's {n}={stated[n]}" for n in asked]
