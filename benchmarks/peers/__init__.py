"""The peers of the comparison, a module for each library.

A module defines `load(request) -> Peer` and imports its library inside that function only, so that
a library that is not installed is one peer less, not a benchmark that fails. `PEERS` names every
row of the table; the first is the one that the others are compared with.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One row: the module that loads it, the dtype or format of its weights, its environment."""

    module: str
    format: str
    environment: str = ".venv"

    @property
    def name(self) -> str:
        """How the row is called in tables, and with --peers."""
        return f"{self.module}/{self.format}".replace("_", "-")


PEERS = (
    Entry("transformers_eager", "float32"),
    Entry("transformers_eager", "bfloat16"),
    Entry("elidir_compiled", "float32"),
    Entry("elidir_compiled", "bfloat16"),
    Entry("elidir_compiled", "q4_1"),
    Entry("llama_cpp", "f32", ".venv-bench"),
    Entry("llama_cpp", "bf16", ".venv-bench"),
    Entry("llama_cpp", "q4_1", ".venv-bench"),
    Entry("openvino_genai", "q4_1", ".venv-bench"),
)
