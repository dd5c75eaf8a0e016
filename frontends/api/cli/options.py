"""Options that several verbs share, and how their text becomes what Python takes.

Each is checked by the part of elidir that it is for; nothing here knows a model. Only typer is
imported before a verb runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from elidir.frontends import Options

MODEL = "'smollm2', a Hugging Face folder, a .gguf file, module:factory, or a saved model"

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)]
Pipeline = Annotated[
    str, typer.Option("--pipeline", "-p", help="Passes as text, a preset, or a YAML file.")
]
Target = Annotated[str, typer.Option(help="What plans and costs are for; see `elidir targets`.")]
Backend = Annotated[
    str, typer.Option(help="What runs, in order of preference, with commas; see `elidir backends`.")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="Floats of the program, such as bfloat16.", show_default="the model's"),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help="A text file, or a .safetensors of `elidir calibrate`, for passes that need data.",
        show_default="a bundled text",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a text with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def pipeline_of(text: str) -> Any:
    """Return what a pipeline option names: a YAML file, else the text itself."""
    return Path(text) if text.endswith((".yaml", ".yml")) else text


def compile_options(pipeline: str, target: str, backend: str, dtype: str | None) -> "Options":
    """Return the options of a compilation, checked; raises `ElidirError` with the nearest name."""
    from elidir.compiler import check_options

    return check_options(pipeline_of(pipeline), target, split_names(backend), dtype)
