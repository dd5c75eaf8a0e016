"""A language model by rule, for tests of tasks: it finds numbers in what it has read and says them.

Its tokens are letters, so that lengths are those of text. Told to forget, it reads only the last
letters of a prompt. Nothing here asserts anything.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from elidir.backends.runtime import LanguageModel, Opening, Rows, Stats

VOCABULARY, END = 256, 0
SECRET = re.compile(r"(?:pass key|number of the \w+) is (\d+)")


@dataclass(frozen=True)
class Letters:
    """A tokenizer whose tokens are letters."""

    template: str = ""

    def encode(self, text: str) -> list[int]:
        return [min(ord(c), VOCABULARY - 1) for c in text]

    def encode_chat(self, text: str) -> list[int]:
        return self.encode(f"<user>{text}<model>")

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i != END)


@dataclass
class Finder:
    """A sequence under way: what it says next is the number that it has found."""

    sees: int
    batch: int = 1
    length: int = 0
    stats: Stats = field(default_factory=Stats)
    said: list[int] = field(default_factory=list)

    def feed(self, ids: Tensor, valid: Any = None, *, rows: Any = Rows.ALL) -> Tensor:
        self.length += ids.shape[1]
        self.stats.kv_bytes = min(self.sees, self.length)
        if ids.shape[1] > 1:
            text = Letters().decode(ids[0].tolist()[-self.sees :])
            found = SECRET.search(text)
            self.said = Letters().encode(f"It is {found[1]}." if found else "Who knows?")
        token = self.said.pop(0) if self.said else END
        return torch.nn.functional.one_hot(torch.tensor([[token]]), VOCABULARY).float()


def finder(sees: int = 10**9, positions: int | None = None) -> LanguageModel:
    """Return the model; it sees only so many letters from the end."""

    def open_(opening: Opening) -> Finder:
        return Finder(sees, opening.prompt.ids.shape[0])

    return LanguageModel(open_, VOCABULARY, positions, {"eos_token_id": END})
