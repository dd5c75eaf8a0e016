"""`elidir run`: a prompt in, the model's text out as it is made.

What is wrong with the command is said before the model is loaded. The chat template is applied
where the model has one.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output

USUAL_LENGTH = 256


def run(
    model: opts.Model,
    prompt: Annotated[str, typer.Argument(help="The text to answer or to go on with.")],
    pipeline: opts.Pipeline = "lossless",
    target: opts.Target = "cpu",
    backend: opts.Backend = "cpu",
    dtype: opts.Dtype = None,
    calibration: opts.Calibration = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens to make at most.", show_default=str(USUAL_LENGTH))
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sample at this temperature; 0 takes the best token.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many best tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the best tokens of this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Sample the same each time.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option(help="Whether to use the chat template.", show_default="if there is one"),
    ] = None,
    json: opts.Json = False,
) -> None:
    """Generate text, greedily unless an option of sampling is given."""
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    request = _request(max_new_tokens, sampling)
    chosen = _checked(prompt, request, pipeline, target, backend, dtype)
    with output.progress() as notify:
        compiled = _compiled(model, prompt, max_new_tokens, chosen, calibration, notify)
        ids = _encode(compiled, prompt, chat)
    request.setdefault("max_new_tokens", _room(compiled, len(ids)))
    streamer = _Streamer(compiled.tokenizer.stream(), len(ids), silent=json)
    made = compiled.generate([ids], streamer=streamer, **request)[0].tolist()[len(ids) :]
    if json:
        return output.say_json(_data(model, prompt, ids, made, compiled, streamer))
    return output.note(_summary(streamer))


def _room(compiled: Any, length: int) -> int:
    """Return the usual number of new tokens, or as many as the model has positions for."""
    limit = compiled.program.max_positions
    return USUAL_LENGTH if limit is None else max(1, min(USUAL_LENGTH, limit + 1 - length))


def _request(new: int | None, sampling: dict[str, Any]) -> dict[str, Any]:
    """Return generate's arguments; any option of sampling turns sampling on, temperature 0 off."""
    given = {k: v for k, v in sampling.items() if v is not None}
    length = {} if new is None else {"max_new_tokens": new}
    if not given or given.get("temperature") == 0:
        return length | {"do_sample": False}
    return length | {"do_sample": True} | given


def _checked(prompt: str, request: dict[str, Any], *named: Any) -> Any:
    """Check all that needs no model; returns the options of the compilation."""
    from elidir.ir import ElidirError

    if not prompt.strip():
        raise ElidirError("the prompt is empty; give some text")
    chosen = opts.compile_options(*named)
    from elidir.backends.runtime import read_options

    read_options(request, {})
    return chosen


def _compiled(
    model: str, prompt: str, new: int | None, chosen: Any, calibration: Path | None, notify: Any
) -> Any:
    """Return the compiled model, with a tokenizer, and ready to run."""
    from elidir.cache import compile_named
    from elidir.frontends import check_length, is_artifact
    from elidir.ir import ElidirError

    if not is_artifact(Path(model).expanduser()):
        check_length(model, prompt, new)
    compiled = compile_named(model, chosen, notify, calibration=calibration)
    if compiled.tokenizer is None:
        raise ElidirError(f"the model {model} has no tokenizer that reads text; use it from Python")
    for remark in compiled.program.remarks:
        output.note(remark)
    notify("preparing weights")
    compiled.prepare()
    return compiled


def _encode(compiled: Any, prompt: str, chat: bool | None) -> list[int]:
    tokenizer = compiled.tokenizer
    wanted = bool(tokenizer.template) if chat is None else chat
    found: list[int] = tokenizer.encode_chat(prompt) if wanted else tokenizer.encode(prompt)
    return found


@dataclass
class _Streamer:
    """Writes each token's text as it comes, and notes when."""

    decoder: Any
    prompt: int
    silent: bool
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    _begun: bool = field(default=False)

    def put(self, value: Any) -> None:
        """Take the prompt, then one token at a time."""
        if not self._begun:
            self._begun = True
            return
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.tokens += 1
        text = self.decoder.step(int(value[0]))
        if not self.silent:
            typer.echo(text, nl=False)

    def end(self) -> None:
        """Write what is left, and end the line."""
        if not self.silent:
            typer.echo(self.decoder.end())

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first."""
        seconds = self.last - self.first
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else None


def _summary(streamer: _Streamer) -> str:
    rate = f", then {streamer.rate:.1f} tokens/s" if streamer.rate else ""
    first = streamer.first - output.STARTED
    return f"{streamer.prompt} tokens in, {streamer.tokens} out; first after {first:.1f} s{rate}"


def _data(
    model: str,
    prompt: str,
    ids: list[int],
    made: list[int],
    compiled: Any,
    streamer: _Streamer,
) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "text": compiled.tokenizer.decode(made),
        "prompt_tokens": len(ids),
        "new_tokens": len(made),
        "tokens": made,
        "seconds_to_first_token": streamer.first - output.STARTED,
        "tokens_per_second": streamer.rate,
        "seconds": compiled.stats["seconds"],
        "remarks": list(compiled.program.remarks),
    }
