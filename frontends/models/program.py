"""From a model to a program that runs: capture, raise, pipeline, weights, lowering.

A `Program` is all that compiling yields. It is data and executables; the face that a user holds is
`elidir.Compiled`. The model itself is read, never changed and never kept.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elidir.backends import Executable, WeightStore, lower
from elidir.ir import DType, Embed, Module
from elidir.passes import History, PipelineResult, Verify, framed

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


@dataclass(frozen=True)
class Face:
    """How the outside calls the program: inputs by name, outputs by structure, generation defaults.

    Args:
        inputs: for each parameter of `@forward` the model's own input, "" for one that it takes for
            granted.
        out_spec: rebuilds the model's output from flat ones, or finds what does when it is first
            needed; None gives a tuple.
        counts_valid: whether positions that the caller leaves out count valid tokens, not slots.
        defaults: generation options of the model.
        signature: the model's own arguments in order.
    """

    inputs: tuple[str, ...]
    out_spec: pytree.TreeSpec | Callable[[], pytree.TreeSpec] | None
    counts_valid: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    signature: tuple[str, ...] = ()

    def output(self, flat: Sequence[Any]) -> Any:
        """Return the model's own kind of output."""
        spec = self.out_spec() if callable(self.out_spec) else self.out_spec
        return tuple(flat) if spec is None else pytree.tree_unflatten(list(flat), spec)


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled model: its modules, its weights, how it is called, and what was done to it."""

    raised: Module
    module: Module
    store: WeightStore
    face: Face
    options: Options
    result: PipelineResult
    history: Sequence[tuple[str, Module]]
    remarks: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def forward(self) -> Executable:
        """`@forward`, lowered when it is first run."""
        return self._lower("forward")

    @cached_property
    def step(self) -> Executable | None:
        """`@step`, lowered when it is first run; None for a model without a cache."""
        return self._lower("step") if "step" in self.module.functions else None

    def _lower(self, name: str) -> Executable:
        started = time.perf_counter()
        function = self.module[name]
        options = self.options
        with _one_thread():
            made = lower(function, self.module, self.store, options.backends, options.dtype)
        self.seconds[f"lower @{name}"] = time.perf_counter() - started
        return made

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids: rows of the table that `@forward` looks its ids up in."""
        region = self.module["forward"].region
        tables = [o.table for o in region.ops if isinstance(o, Embed) and o.ids is region.params[0]]
        size = tables[0].type.dims[0] if tables else None
        return size if isinstance(size, int) else None

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
) -> Program:
    """Compile a model.

    Args:
        model: an `nn.Module` or a function of tensors.
        options: see `Options`.
        example_inputs: inputs of one usual call; models of transformers need none.
        storages: by parameter name, weights in the format they were stored in.
    """
    from elidir.frontends.capture import capture
    from elidir.frontends.raising import raise_capture
    from elidir.frontends.sources import weight_sources

    pipeline = framed(options.pipeline)
    started = time.perf_counter()
    captured = capture(model, example_inputs, dynamic=options.dynamic, static=options.static)
    seconds = {"capture": time.perf_counter() - started}
    started = time.perf_counter()
    raised = raise_capture(captured, _name(model))
    seconds["raise"] = time.perf_counter() - started
    started = time.perf_counter()
    sources, entries = weight_sources(raised, storages or {})
    module = replace(raised.module, weights=entries)
    seconds["hash weights"] = time.perf_counter() - started
    started = time.perf_counter()
    history = History()
    result = pipeline.run(module, instruments=[Verify(), history], target=options.target)
    seconds["passes"] = time.perf_counter() - started
    face = Face(raised.inputs, captured.out_spec, **_asked_of(model, raised.inputs))
    rows, store = tuple(history.rows), WeightStore(sources)
    remarks = (*captured.remarks, *_not_applied(model))
    return Program(module, result.module, store, face, options, result, rows, remarks, seconds)


def _name(model: Any) -> str:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None) or type(model).__name__.lower()
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in str(kind))


# ---- what a model of transformers says of itself

_GENERATION = (
    *("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "do_sample"),
    *("temperature", "top_k", "top_p", "repetition_penalty", "max_length", "max_new_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)


def _asked_of(model: Any, inputs: Sequence[str]) -> dict[str, Any]:
    """Return the rest of the face."""
    call = model.forward if isinstance(model, torch.nn.Module) else model
    names = tuple(inspect.signature(call).parameters)
    generation = getattr(model, "generation_config", None)
    stated = generation.to_diff_dict() if generation is not None else {}
    defaults = {k: stated[k] for k in _GENERATION if stated.get(k) is not None}
    return {
        "signature": names,
        "defaults": defaults,
        "counts_valid": "position_ids" in inputs and _counts_valid(model),
    }


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


def _counts_valid(model: torch.nn.Module) -> bool:
    """Whether the model's own default positions count valid tokens (OPT) rather than slots."""
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3]], device=device)
    mask = torch.tensor([[0, 1, 1]], device=device)
    slots = torch.arange(3, device=device)[None]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            own = _first(model(input_ids=ids, attention_mask=mask))
            given = _first(model(input_ids=ids, attention_mask=mask, position_ids=slots))
    finally:
        model.train(training)
    return not torch.equal(own[:, 1:], given[:, 1:])


def _first(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]
