"""A compiled vision-language model: its language model, and a program for each shape of picture.

A prompt has a placeholder for each feature of its pictures, as transformers' processors make it.
Those whose tokens were dropped go; the others become ids behind the vocabulary, each of which names
a feature. So generation runs as over words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from elidir.backends import torch_dtype
from elidir.backends.runtime import (
    InputError,
    LanguageModel,
    Reader,
    Session,
    at_positions,
    decoder_only,
)
from elidir.calling import forward_inputs
from elidir.compiled import Compiled
from elidir.cost_models import Measured, Report
from elidir.explain import explain_program
from elidir.frontends import Options, Pictured, Program, Shape, build, measure_call, runs_in
from elidir.ir import ElidirError, Stage
from elidir.passes import Fixpoint, Pass, Pipeline, framed
from elidir.picture_prompt import Prompt, Seen, partitions, spliced, with_newlines
from elidir.picture_report import WORDS, Sight, with_pictures

INCREMENTALIZE = "incrementalize"  # is for the language model: what it says of pictures helps none


class CompiledPictures(Compiled):
    """A compiled vision-language model; `vision` holds the programs from pixels to features.

    They are compiled for each shape into which pictures are cut, at the first picture of it.
    """

    def __init__(self, parts: Pictured, options: Options, *, calibration: Any = None) -> None:
        words, sights = _divided(framed(options.pipeline))
        super().__init__(parts.language, replace(options, pipeline=words), calibration=calibration)
        self.parts, self._sights = parts, replace(options, pipeline=sights)
        self.vision: dict[Shape, Program] = {}
        (shape,) = parts.shapes(torch.tensor([parts.usual]), 1)
        self._vision(shape)  # what is wrong with an option is said here

    # -- running

    def __call__(self, input_ids: Any, pixel_values: Any = None, **more: Any) -> Any:
        """Run the model: logits of the words and of the features that are left."""
        if pixel_values is None:
            return super().__call__(input_ids, **more)
        prompt = self._prompt(input_ids, pixel_values, more)
        program = self.program
        positions = {"position_ids": prompt.positions} if self._keeps_positions else {}
        given = {
            "input_ids": prompt.ids,
            "attention_mask": prompt.valid.long(),
            **positions,
            **more,
        }
        reader = self._reader("forward", program.forward, prompt.table)
        logits = reader(*forward_inputs(program, (), given))[0]
        rows = prompt.ids[prompt.ids >= self._words] - self._words
        return self.parts.output(logits, prompt.table[rows])

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        pixel_values: Any = None,
        image_sizes: Any = None,
        **options: Any,
    ) -> Tensor:
        """Return prompt and new tokens, i64[B, T]; arguments as in transformers' `generate`.

        Raises `ElidirError` for pictures that do not fit the prompt or positions that the model
        does not have, and as `Compiled.generate`.
        """
        if pixel_values is None:
            return super().generate(input_ids, attention_mask, **options)
        ids = _rows(input_ids)
        more = {"attention_mask": attention_mask, "image_sizes": image_sizes}
        prompt = self._prompt(ids, pixel_values, more)
        if options.get("max_length") is not None:
            options["max_length"] -= prompt.dropped
        if options.get("streamer") is not None:
            options["streamer"] = _Streamer(options["streamer"], ids)
        language = self._over(prompt)
        found = self._generate(language, prompt.ids, prompt.valid.long(), **options)
        return torch.cat((ids, found[:, prompt.ids.shape[1] :]), dim=1)

    def features(self, pixel_values: Any, image_sizes: Any = None) -> list[Seen]:
        """Return what is left of each picture, of pixels [images, partitions, C, H, W]."""
        pixels = torch.as_tensor(pixel_values)
        if pixels.dim() not in (4, 5):
            raise ElidirError(
                f"pixels are [pictures, partitions, channels, height, width], not "
                f"{list(pixels.shape)}; make them with the model's processor"
            )
        flat = pixels.dim() == 4 and image_sizes is not None
        shapes = self.parts.shapes(image_sizes, len(image_sizes) if flat else len(pixels))
        each = partitions(pixels, [shape.partitions for shape in shapes])
        found: dict[int, Seen] = {}
        for shape in dict.fromkeys(shapes):
            rows = [i for i, other in enumerate(shapes) if other == shape]
            found |= zip(rows, self._seen(torch.stack([each[i] for i in rows]), shape), strict=True)
        return [found[i] for i in range(len(shapes))]

    def _seen(self, pixels: Tensor, shape: Shape) -> list[Seen]:
        program = self._vision(shape)
        dtype = program.forward.params[0].type.dtype
        features, *index = program.forward(pixels.to(torch_dtype(dtype)))
        features = features.reshape(len(pixels), -1, features.shape[-1])
        whole = torch.arange(features.shape[1]).expand(len(pixels), -1)
        kept = index[0] if index else whole
        return [Seen(f, i) for f, i in zip(features, kept, strict=True)]

    # -- prompts

    @property
    def _words(self) -> int:
        words = self.program.vocabulary
        if words is None:
            raise ElidirError("the model has no table of words, so pictures cannot be among them")
        return words

    @property
    def _keeps_positions(self) -> bool:
        passes = Pipeline.of(self._sights.pipeline).passes()
        return any(p.pictures and getattr(p, "positions", "") == "original" for p in passes)

    def _prompt(self, input_ids: Any, pixel_values: Any, more: dict[str, Any]) -> Prompt:
        """Return the prompt over words and features; takes its own arguments out of `more`."""
        ids, sizes = _rows(input_ids), more.pop("image_sizes", None)
        valid = self._valid(ids, more.pop("attention_mask", None))
        pictures = self.features(pixel_values, sizes)
        places = self._places(pictures, pixel_values, sizes)
        table = torch.cat([seen.features for seen in pictures])
        if self.parts.newline is not None:
            table = torch.cat((table, self.parts.newline.detach()[None].to(table.dtype)))
        made = spliced(ids, valid, self.parts.image, self._words, torch.cat(places), table)
        if self._keeps_positions:
            self._check_positions(made.top)
        return made

    def _check_positions(self, needed: int) -> None:
        """Raise `InputError` if tokens that keep their positions need more than there are."""
        most = self.program.max_positions
        if most is not None and needed > most:
            raise InputError(
                f"the prompt needs {needed} positions with those of dropped tokens, and the model "
                f"has {most}; give drop-visual-tokens positions=compact, or shorten the prompt"
            )

    def _valid(self, ids: Tensor, mask: Any) -> Tensor:
        """Return which tokens are no padding, which the id of padding says where no mask does."""
        if mask is not None:
            return torch.as_tensor(mask).bool().reshape(ids.shape)
        defaults = self.program.face.defaults
        pad, ends = defaults.get("pad_token_id"), defaults.get("eos_token_id") or []
        known = pad is not None and pad not in (ends if isinstance(ends, list) else [ends])
        return ids != pad if known else torch.ones_like(ids, dtype=torch.bool)

    def _places(self, pictures: Sequence[Seen], pixels: Any, sizes: Any) -> list[Tensor]:
        """Return for each place of a picture the row of the table that stands there, -1 for none.

        A newline stays where the whole row before it does.
        """
        shapes = self.parts.shapes(sizes, len(pictures))
        known = [None] * len(pictures) if sizes is None else torch.as_tensor(sizes).tolist()
        rows, found = sum(len(seen.index) for seen in pictures), []
        start = 0
        for seen, shape, size in zip(pictures, shapes, known, strict=True):
            layout = self.parts.layout(shape, size, self._tokens(shape))
            row = torch.full((shape.partitions * self._tokens(shape) + 1,), -1)
            row[seen.index] = start + torch.arange(len(seen.index))
            places = row[layout]
            found.append(with_newlines(places, layout, rows, self._tokens(shape)))
            start += len(seen.index)
        return found

    def _tokens(self, shape: Shape) -> int:
        """Return the features of a partition before any are dropped."""
        tokens = self._vision(shape).raised["forward"].region.results[0].type.dims[1]
        return int(tokens)

    # -- programs

    def _vision(self, shape: Shape) -> Program:
        if shape not in self.vision:
            steps = tuple(_for_grid(s, shape) for s in Pipeline.of(self._sights.pipeline).steps)
            options = replace(self._sights, pipeline=Pipeline(steps))
            example, reader = (self.parts.example(shape),), self.program.module
            self.vision[shape] = build(self.parts.vision, options, example, reader=reader)
        return self.vision[shape]

    def _reader(self, name: str, run: Any, table: Tensor) -> Reader:
        program = self.program
        return Reader(run, program.reading(name), program.embedding, self._words, table)

    def _over(self, prompt: Prompt) -> LanguageModel:
        """Return the language model over a prompt's words and features."""
        program, limits = self.program, self._limits()
        limits["vocabulary"] = self._words + len(prompt.table)
        step = None
        if program.step is not None:
            step = self._reader("step", program.step, prompt.table)
        prefill = program.prefill
        if prefill is not None:
            prefill = replace(prefill, run=self._reader("prefill", prefill.run, prompt.table))
        reader = self._reader("forward", program.forward, prompt.table)

        def forward(ids: Tensor, valid: Tensor, pos: Tensor) -> Tensor:
            pos = prompt.placed(pos) if self._keeps_positions else pos
            logits: Tensor = reader(ids, valid, pos)[0]
            return logits

        found = decoder_only(step, forward, prefill=prefill, **limits)
        if not self._keeps_positions:
            return found

        def open_(opening: Any) -> Any:
            decoder = found.open(opening)
            cached = isinstance(decoder, Session)
            return at_positions(decoder, prompt.positions) if cached else decoder

        most = program.max_positions
        return replace(found, open=open_, max_positions=most and most - prompt.gap)

    def _limits(self) -> dict[str, Any]:
        program = self.program
        return {"max_positions": program.max_positions, "defaults": program.face.defaults}

    # -- looking

    def report(
        self,
        targets: Any = None,
        *,
        pictures: int = 1,
        image_size: tuple[int, int] | None = None,
        measure: bool = False,
        **request: Any,
    ) -> Report:
        """Return the predicted cost on each target, of so many pictures in each prompt and words.

        `prompt` counts the words; what is left of pictures of `image_size` pixels, down and across,
        is added. Without pictures it is that of the language model; the rest as `Compiled.report`.
        Raises `InputError` for a prompt whose tokens keep more positions than there are.
        """
        if not pictures:
            return super().report(targets, measure=measure, **request)
        program, wanted = self.program, [self._options.target] if targets is None else targets
        sight = self._sight(image_size or self.parts.usual, pictures)
        taken = sight.whole if self._keeps_positions else sight.left
        room = (program.max_positions or taken + 2 * WORDS) - taken
        words = request.pop("prompt", None) or max(1, min(WORDS, room // 2))
        if self._keeps_positions:
            self._check_positions(words + taken)
        if measure:
            request["dtype"] = request.get("dtype") or runs_in(program).value
        request.setdefault("new", min(128, max(room - words, 1)) if program.max_positions else 128)
        asked = {"prompt": words + sight.left, "measure": measure, **request}
        after = super().report(wanted, **asked)
        if measure:
            request["measured"] = (self._measured(sight, after.batch),)
        return with_pictures(after, program, sight, wanted, request)

    def _sight(self, size: tuple[int, int], count: int) -> Sight:
        (shape,) = self.parts.shapes(torch.tensor([size]), 1)
        places = len(self.parts.layout(shape, size, self._tokens(shape)))
        return Sight(self._vision(shape), places, count)

    def _measured(self, sight: Sight, batch: int) -> Measured:
        """Run what makes features of so many pictures."""
        program = sight.program
        pixels = program.forward.params[0].type
        rows = (batch * sight.count, *pixels.dims[1:])
        example = torch.zeros(rows, dtype=torch_dtype(pixels.dtype))
        return measure_call("forward", lambda: program.forward(example), program)

    def save(self, path: Any, *, tokenizer: Any = None) -> str:
        """Refuse: where features stand in a prompt is asked of the model's own code."""
        raise ElidirError(
            "a model that reads pictures is not saved compiled: only its own code knows where "
            "features stand in a prompt; keep the model with its save_pretrained, and compile what "
            "from_pretrained gives"
        )

    def explain(self) -> str:
        """Return what each pass did in either part, or why it did not."""
        text = "language model\n" + explain_program(self.program)
        for shape, program in self.vision.items():
            lines = explain_program(program).splitlines(keepends=True)
            said = (line for line in lines if not line.startswith(INCREMENTALIZE))
            text += f"pictures of {shape.partitions} partitions\n" + "".join(said)
        return text


@dataclass(eq=False)
class _Streamer:
    """Gives a streamer the prompt as the caller had it, then each token."""

    streamer: Any
    prompt: Tensor | None

    def put(self, value: Tensor) -> None:
        self.streamer.put(value if self.prompt is None else self.prompt)
        self.prompt = None

    def end(self) -> None:
        self.streamer.end()


def _rows(ids: Any) -> Tensor:
    if ids is None:
        raise ElidirError("generate needs token ids; give input_ids=")
    found = torch.as_tensor(ids)
    return found[None] if found.dim() == 1 else found


# ---- which part a pass is for


def _divided(pipeline: Pipeline) -> tuple[Pipeline, Pipeline]:
    """Return the passes for the language model, and those for the part that reads pictures.

    What needs a cache or calibration is for the former alone.
    """
    words = (s for s in pipeline.steps if isinstance(s, Fixpoint) or not s.pictures)
    sights = (s for s in pipeline.steps if isinstance(s, Fixpoint) or _may_see(s))
    return Pipeline(tuple(words)), Pipeline(tuple(sights))


def _may_see(step: Pass) -> bool:
    return Stage.RAISED in step.stages and step.produces is None and not step.needs


def _for_grid(step: Any, shape: Shape) -> Any:
    """Return a pass that needs the grid of sub-images, with it."""
    own = isinstance(step, Pass) and step.pictures and getattr(step, "grid", ()) is None
    if not own:
        return step
    return replace(step, grid=shape.grid)
