"""The real model, saved: small on disk, whole, and the same tokens without transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import elidir

PROMPTS = ("Why is the sky blue?", "Count from one to ten.")

CODE = """
import json, sys
sys.modules["transformers"] = sys.modules["gguf"] = None
import elidir
made = elidir.load(sys.argv[1])
ids = [made.tokenizer.encode_chat(prompt) for prompt in sys.argv[2:]]
print(json.dumps([made.generate([i], max_new_tokens=16, do_sample=False).tolist() for i in ids]))
"""


@pytest.mark.slow
def test_the_same_tokens_without_transformers(tmp_path: Path) -> None:
    fast = elidir.compile("smollm2")
    fast.save(tmp_path / "model")
    run = subprocess.run(
        [sys.executable, "-P", "-c", CODE, str(tmp_path / "model"), *PROMPTS],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    ids = [fast.tokenizer.encode_chat(prompt) for prompt in PROMPTS]
    wanted = [fast.generate([i], max_new_tokens=16, do_sample=False).tolist() for i in ids]
    assert json.loads(run.stdout) == wanted
    size = sum(p.stat().st_size for p in (tmp_path / "model").iterdir())
    assert size < 1.1 * fast.stats["stored_bytes"] + 5e6
