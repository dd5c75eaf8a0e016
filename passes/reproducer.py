"""Reproducers: one file with a module and, in its first line, the pipeline to run on it.

`// run: cse, dce` and then the text of the module: what a crash leaves behind, what `elidir opt`
reads, and the first half of a golden test. One that `elidir bisect` wrote also says what it is run
on.
"""

import json
from typing import Any

from elidir.ir import Module, parse_module
from elidir.passes.errors import PipelineError
from elidir.passes.pipeline import Pipeline

_HEADER = "// run:"
_DATA = "// bisect:"


def reproducer_text(
    pipeline: Pipeline, module: Module, error: str = "", data: dict[str, Any] | None = None
) -> str:
    """Return the text of a reproducer; the error, and data for bisecting, follow as comments."""
    note = f"// error: {' '.join(error.split())}\n" if error else ""
    more = f"{_DATA} {json.dumps(data)}\n" if data else ""
    return f"{_HEADER} {pipeline}\n{note}{more}{module}"


def read_reproducer(text: str) -> tuple[Pipeline, Module]:
    """Return pipeline and module of a reproducer; raises `PipelineError` without a header."""
    lines = (line.strip() for line in text.splitlines())
    header = next((line for line in lines if line.startswith(_HEADER)), None)
    if header is None:
        raise PipelineError(
            f"the file has no '{_HEADER} pipeline' line; add one, or use --pipeline"
        )
    return Pipeline.parse(header.removeprefix(_HEADER)), parse_module(text)


def reproducer_data(text: str) -> dict[str, Any]:
    """Return the data for bisecting that a reproducer holds, nothing if it holds none.

    Raises:
        PipelineError: the line of the data is no JSON.
    """
    line = next((line for line in text.splitlines() if line.startswith(_DATA)), None)
    if line is None:
        return {}
    try:
        return dict(json.loads(line.removeprefix(_DATA)))
    except ValueError as error:
        raise PipelineError(
            f"the line '{_DATA}' of the file is no JSON: {error}; mend it"
        ) from None
