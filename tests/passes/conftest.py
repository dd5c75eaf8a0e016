"""Golden tests: every `.ir` file in this folder is one, text in and text out.

`// run:` a pipeline, a module, `// ----`, the module that comes out, and its remarks. The module
must also be a fixed point of its pipeline (unless that leads to another stage), and print the same
after parsing. `--update` rewrites what is below the line.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elidir.ir import format_module, parse_module
from elidir.passes import read_reproducer
from tests.passes.observing import observed

LINE = "// ----\n"


def pytest_collect_file(parent: pytest.Collector, file_path: Path) -> pytest.Collector | None:
    if file_path.suffix != ".ir":
        return None
    return GoldenFile.from_parent(parent, path=file_path)


class GoldenFile(pytest.File):
    """One file, one test."""

    def collect(self) -> Iterator[pytest.Item]:
        yield GoldenTest.from_parent(self, name="golden")


class GoldenTest(pytest.Item):
    """Runs the pipeline of a file on its module and compares the text."""

    def runtest(self) -> None:
        before, _, wanted = self.path.read_text().partition(LINE)
        found = outcome(before)
        if self.config.getoption("update"):
            self.path.write_text(before + LINE + found)
        elif found != wanted:
            raise GoldenError(wanted, found)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any) -> str:
        if isinstance(excinfo.value, GoldenError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo, *args))

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, str(self.path.name)


class GoldenError(Exception):
    """What came out is not what the file says."""

    def __init__(self, wanted: str, found: str) -> None:
        import difflib

        lines = difflib.unified_diff(
            wanted.splitlines(), found.splitlines(), "in the file", "found", lineterm=""
        )
        super().__init__("\n".join([*lines, "run pytest with --update to take what was found"]))


def outcome(before: str) -> str:
    """Return the text and remarks of a run, having checked that running again changes nothing."""
    pipeline, module = read_reproducer(before)
    seen = observed(module)
    result = pipeline.run(module, observations=seen)
    text = format_module(result.module)
    assert format_module(parse_module(text)) == text
    if result.module.stage is module.stage:  # else it cannot run again
        assert pipeline.run(result.module, observations=seen).module is result.module, (
            "running again changes it"
        )
    return text + "".join(f"// remarks: {remark}\n" for remark in result.remarks)
