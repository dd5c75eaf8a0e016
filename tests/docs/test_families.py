"""docs/families.md has a line for each family that the tests know, and calls no named one opaque.

What the lines say is checked where the families are tested; the page is made by a script.
"""

import re

import pytest

from tests.docs.pages import ROOT
from tests.zoo import NAMED, OTHERS

PAGE = (ROOT / "docs" / "families.md").read_text()
ROWS = {cells[0]: cells for line in PAGE.splitlines() if (cells := re.findall(r"[^|]+", line))}
LINES = {name.strip(): [c.strip() for c in cells] for name, cells in ROWS.items()}


@pytest.mark.parametrize("name", [*NAMED, *OTHERS])
def test_each_family_has_a_line(name: str) -> None:
    assert name in LINES, "run `python -m benchmarks.families` again"


@pytest.mark.parametrize("name", NAMED)
def test_a_named_family_is_whole(name: str) -> None:
    _, captured, raised, _, bodies, _, opaque, cache, error = LINES[name]
    assert (captured, raised, bodies, opaque) == ("yes", "yes", "1", "none")
    assert (cache == "yes") == NAMED[name].causal
    assert float(error) <= 1e-5
