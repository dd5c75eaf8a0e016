"""examples/tour.ipynb: its cells run from top to bottom in a process of their own.

The outputs in the file were made by such a run; only the code is checked here.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, reader

NOTEBOOK = ROOT / "examples" / "tour.ipynb"


def cells() -> list[str]:
    """The code of each cell."""
    data = json.loads(NOTEBOOK.read_text())
    return ["".join(c["source"]) for c in data["cells"] if c["cell_type"] == "code"]


@pytest.mark.slow
def test_the_cells_run(tmp_path: Path) -> None:
    script = tmp_path / "tour.py"
    script.write_text("\n".join(cells()))
    run = subprocess.run(
        [sys.executable, "-P", script],
        cwd=tmp_path,
        env=reader(tmp_path),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_every_cell_was_run_before_it_was_kept() -> None:
    data = json.loads(NOTEBOOK.read_text())
    code = [c for c in data["cells"] if c["cell_type"] == "code"]
    assert code
    assert all(c["execution_count"] for c in code)
    kinds = [output["output_type"] for c in code for output in c["outputs"]]
    assert "error" not in kinds
