"""What every test gets: a seed of its own, a few threads, and hypothesis without deadlines.

A test's seed is a hash of its node id, so that it draws the same numbers alone and in any order.
Whatever module a pipeline makes in any test is printed, and read back to the same bytes.
`--update` rewrites golden files: collectors and fixtures read it as `config.getoption("update")`.
No fixture that belongs to one folder's tests lives here: those have a conftest of their own.
"""

import os
import random
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from elidir.ir import format_module, parse_module
from elidir.passes import Pipeline, PipelineResult

# One thread per worker, set before anything imports torch: the workers are as many as the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update",
        action="store_true",
        default=False,
        help="rewrite golden files with what the code says now",
    )


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seed Python, and numpy and torch where they are loaded, from the test's node id."""
    value = zlib.crc32(request.node.nodeid.encode())
    random.seed(value)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(value)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(value)
    return value


@pytest.fixture(autouse=True, scope="session")
def modules_read_back() -> Iterator[None]:
    """Print, parse and print what comes out of every pipeline; equal texts are tried once."""
    run, seen = Pipeline.run, set[str]()

    def watched(self: Pipeline, *args: Any, **options: Any) -> PipelineResult:
        result = run(self, *args, **options)
        text = format_module(result.module)
        if text not in seen:
            assert format_module(parse_module(text)) == text
            seen.add(text)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "run", watched)
        yield
