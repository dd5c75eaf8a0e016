"""Reproducers: one file with a module and, in its first line, the pipeline to run on it.

`// run: cse, dce` and then the text of the module: what a crash leaves behind, what `elidir opt`
reads, and the first half of a golden test.
"""

from elidir.ir import Module, parse_module
from elidir.passes.errors import PipelineError
from elidir.passes.pipeline import Pipeline

_HEADER = "// run:"


def reproducer_text(pipeline: Pipeline, module: Module, error: str = "") -> str:
    """Return the text of a reproducer; the error follows the header as a comment."""
    note = f"// error: {' '.join(error.split())}\n" if error else ""
    return f"{_HEADER} {pipeline}\n{note}{module}"


def read_reproducer(text: str) -> tuple[Pipeline, Module]:
    """Return pipeline and module of a reproducer; raises `PipelineError` without a header."""
    lines = (line.strip() for line in text.splitlines())
    header = next((line for line in lines if line.startswith(_HEADER)), None)
    if header is None:
        raise PipelineError(
            f"the file has no '{_HEADER} pipeline' line; add one, or use --pipeline"
        )
    return Pipeline.parse(header.removeprefix(_HEADER)), parse_module(text)
