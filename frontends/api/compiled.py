"""What `elidir.compile` gives back: a model that is called and generates as before, and says why.

Nothing is captured here before it must be: a module that needs example inputs is captured at its
first call. What compiling yields is `elidir.frontends.Program`; this file is the user's view of it.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from elidir.backends.runtime import (
    Decoder,
    LanguageModel,
    Opening,
    Stats,
    decoder_only,
    encoder_decoder,
    generate,
)
from elidir.calling import forward_inputs
from elidir.cost_models import Report, bits_per_weight, report, waterfall
from elidir.excerpt import excerpt
from elidir.explain import explain_program
from elidir.frontends import (
    Arguments,
    Evaluation,
    Options,
    Program,
    Quality,
    build,
    is_hugging_face,
    measure_program,
    runs_in,
)
from elidir.ir import ElidirError, Entry, fold_module, nearest, product
from elidir.whole import call, decoder_forward, pair_forward

_REQUEST = ("batch", "prompt", "new", "context", "dtype")


class Compiled:
    """A compiled model.

    Call it as the model; `generate` takes transformers' arguments. `report` predicts its cost on
    any target, `explain` says what each pass did or why it did not, `ir` is the program's text,
    `history` the text after each pass, `stats` seconds and bytes, `save` writes it to disk;
    `tokenizer` is that of a named model.
    """

    def __init__(
        self,
        model: Any,
        options: Options,
        example_inputs: Any = None,
        *,
        storages: Any = None,
        calibration: Any = None,
    ) -> None:
        self._model, self._options = model, options
        self._storages, self._calibration = storages, calibration
        self._program: Program | None = None
        self._generation: Stats | None = None
        self._lock = threading.Lock()
        self.tokenizer: Any = None
        if example_inputs is not None or _is_hugging_face(model):
            self._build(example_inputs)

    @classmethod
    def of(cls, program: Program, tokenizer: Any = None) -> "Compiled":
        """Return the face of a program that exists already, with its tokenizer if it has one."""
        made = cls.__new__(cls)
        made._model, made._options = None, program.options
        made._storages = made._calibration = None
        made._program, made._generation, made._lock = program, None, threading.Lock()
        made.tokenizer = tokenizer
        return made

    def _build(self, example_inputs: Any) -> Program:
        with self._lock:
            if self._program is None:
                model, stored = self._model, self._storages
                data = self._calibration
                self._program = build(
                    model, self._options, example_inputs, stored, calibration=data
                )
                self._model = self._storages = None  # its tensors are held by the program's store
        return self._program

    @property
    def program(self) -> Program:
        """All that was compiled; raises `ElidirError` before the first call of a lazy one."""
        if self._program is None:
            raise ElidirError(
                "nothing is compiled yet: its inputs are known at the first call; call it once, "
                "or give example_inputs= to elidir.compile"
            )
        return self._program

    # -- running

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model: its own arguments, and its own kind of output."""
        program = self._program or self._build(Arguments(args, kwargs))
        return program.face.output(call(program, forward_inputs(program, args, kwargs)))

    def generate(
        self, input_ids: Any = None, attention_mask: Any = None, **options: Any
    ) -> torch.Tensor:
        """Return prompt and new tokens, i64[B, T]; arguments as in transformers' `generate`.

        Raises `ElidirError` for an argument that is unknown or out of range, before any step.
        """
        if input_ids is None:
            raise ElidirError("generate needs token ids; give input_ids=")
        return self._generate(self.language_model(), input_ids, attention_mask, **options)

    def _generate(self, model: LanguageModel, *args: Any, **options: Any) -> torch.Tensor:
        """Generate, and remember the counters of what did so."""

        def watched(opening: Opening) -> Decoder:
            decoder = model.open(opening)
            self._generation = decoder.stats
            return decoder

        return generate(replace(model, open=watched), *args, **options)

    def language_model(self) -> LanguageModel:
        """Return the model as generation and evaluation take it.

        Raises `ElidirError` for a model that cannot generate.
        """
        program = self.program
        if program.face.mute:
            raise ElidirError(f"the model cannot generate: {program.face.mute}")
        names = [p.name for p in program.module["forward"].region.params]
        limits: dict[str, Any] = {
            "vocabulary": program.vocabulary,
            "max_positions": program.max_positions,
            "defaults": program.face.defaults,
        }
        if names[:3] == ["ids", "valid", "pos"] and "decoder_input_ids" in names:
            return encoder_decoder(pair_forward(program), **limits)
        if names != ["ids", "valid", "pos"]:
            raise ElidirError(
                f"the model reads {', '.join(names)}, not token ids alone, so it cannot generate; "
                "call it"
            )
        face = program.face  # a model that is told of padding alone gives it positions
        counts = bool(face.inputs[1]) and "position_ids" not in face.signature
        limits |= {"prefill": program.prefill, "padding_counts": counts}
        return decoder_only(program.step, decoder_forward(program), **limits)

    def prepare(self) -> None:
        """Rearrange the weights for what generation runs, which otherwise happens at first use."""
        program = self.program
        _ = (program.step or program.forward, program.prefill)

    def save(self, path: Any, *, tokenizer: Any = None) -> str:
        """Write the compiled model to a folder, which `elidir.load` reads; returns its hash.

        Args:
            path: a folder; a saved model that is there is replaced, anything else is not.
            tokenizer: of transformers or elidir, for a model that was given as an object.

        Raises `ElidirError` for one that was never captured, a path that holds something else, or
        a disk without room; what was there is whole then.
        """
        from elidir.saving import save

        return save(self.program, path, self.tokenizer if tokenizer is None else tokenizer)

    # -- looking

    @property
    def ir(self) -> str:
        """The program's text, runs of layers folded; the full is `str(compiled.program.module)`."""
        return fold_module(self.program.module)

    @property
    def history(self) -> list[tuple[str, str]]:
        """The program's text as raised and after each pass that changed it, with the pass."""
        return [(name, fold_module(module)) for name, module in self.program.history]

    @property
    def stats(self) -> dict[str, Any]:
        """Seconds of each stage so far, how many weights are stored, and their bytes.

        After `generate`, `generation` counts in each row of the last one: tokens fed, steps, the
        tokens that each layer with a cache was given, layers per token, and the cache's bytes.
        """
        program = self.program
        entries = [e for e in program.module.weights.values() if e.expr is None]
        found = {
            "seconds": dict(program.seconds),
            "weights": len(entries),
            "stored_bytes": sum(_stored_bytes(e) for e in entries),
        }
        last = self._generation
        return found if last is None else found | {"generation": last.counts}

    def explain(self) -> str:
        """Return what each pass did, or why it did not, and which backend runs what."""
        return explain_program(self.program)

    def report(
        self, targets: str | Sequence[Any] | None = None, *, measure: bool = False, **request: Any
    ) -> Report:
        """Return the predicted cost on each target (the one compiled for, if none is named).

        `request` takes batch, prompt, new, context and dtype, as `elidir.cost_models.report` does.
        `measure` runs the program as well, and the target `cpu` shows both; floats then count in
        the dtype that they run in.
        """
        program = self.program
        for name in request:
            if name not in _REQUEST:
                raise ElidirError(f"report has no argument '{name}'{nearest(name, _REQUEST)}")
        wanted = [program.options.target] if targets is None else targets
        if program.max_positions is not None:  # the usual request may be too long for the model
            request.setdefault("new", min(128, program.max_positions // 4))
            request.setdefault("prompt", min(512, program.max_positions - request["new"]))
        if measure:
            request["dtype"] = request.get("dtype") or runs_in(program).value
            request["measured"] = measure_program(program, self.language_model(), request)
        shared = {k: v for k, v in request.items() if k not in ("new", "measured")}
        falls = waterfall(program.history, wanted, **shared)
        return report(program.module, wanted, waterfall=falls, **request)

    def quality(self, texts: Any, **options: Any) -> Quality:
        """Return how near the model is to the original on some text, as tables and as data.

        KL, agreement on the most likely token and perplexity, with intervals, and the speed of
        both. `texts` is a text, a path or token ids, or several; options are those of
        `elidir.frontends.measure_quality`: window, most, feeding, batch, seed, tokenizer.
        Raises `ElidirError` for a text or a model that cannot be scored, before any step.
        """
        from elidir.evaluate import quality

        return quality(self, texts, **options)

    def evaluate(self, tasks: Sequence[Any] = (), texts: Any = None, **options: Any) -> Evaluation:
        """Return what tasks such as "passkey" and "squad" say of the model beside the original.

        See `elidir.evaluate.evaluate` for the options, `elidir.frontends.tasks` for the tasks.
        """
        from elidir.evaluate import evaluate

        return evaluate(self, tasks, texts, **options)

    def _repr_html_(self) -> str:
        return "" if self._program is None else excerpt(self._program)

    def __repr__(self) -> str:
        if self._program is None:
            return f"Compiled({type(self._model).__name__}, not captured yet)"
        return f"Compiled({self._program.module.name}, target={self._options.target})"


def _is_hugging_face(model: Any) -> bool:
    return isinstance(model, torch.nn.Module) and is_hugging_face(model)


def _stored_bytes(entry: Entry) -> int:
    count, bits = product(entry.type.dims), bits_per_weight(entry.format or entry.type.dtype.value)
    return int(count * bits) // 8
