"""`elidir calibrate`: what passes need to know of a model's values, recorded on a text file.

The file that it writes is what `--calibration` takes, and `elidir.compile(calibration=Path(..))`.
What is wrong with the text is said before the model is loaded.
"""

from pathlib import Path
from typing import Annotated

import typer

from elidir.cli import options as opts
from elidir.cli import output
from elidir.cli.observing import compiled_simply


def calibrate(
    model: opts.Model,
    text: Annotated[Path, typer.Argument(help="A text file in UTF-8.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, which ends in .safetensors.")
    ],
    backend: opts.Backend = "cpu",
    json: opts.Json = False,
) -> None:
    """Record what passes need to know, on a text; compile with --calibration FILE."""
    from elidir.frontends import CalibrationError, Network, calibrate, read_text, write_observations

    if out.suffix != ".safetensors":
        raise CalibrationError(f"{out} would not be known again; name it {out.stem}.safetensors")
    output.check_writable(out)
    read_text(text)
    with output.progress() as notify:
        compiled, _ = compiled_simply(model, notify, backend)
        notify("calibrating")
        made = calibrate(Network.of(compiled.program, compiled.tokenizer), text)
    write_observations(made, out)
    source = made.provenance
    if json:
        return output.say_json({"path": str(out), **vars(source), "observations": [*made.found]})
    return output.say(f"{out}: {', '.join(made.found)} of {source.tokens:,} tokens")
