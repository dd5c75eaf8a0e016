"""How much of the tokens a pass may keep: a part, a number of tokens, or bytes of cache.

Every pass that drops tokens takes these as its options, and hands them on as two numbers: a part of
the new tokens, and the most that are ever held. Which tokens are kept is the pass's affair.
"""

import re
from dataclasses import dataclass

from elidir.passes.errors import PipelineError

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Budget:
    """`keep` of the tokens, from 0 to 1, and `most` in all, None for any number."""

    keep: float = 1.0
    most: int | None = None

    @classmethod
    def of(cls, keep: float, tokens: int | None, size: str | None, token_bytes: int) -> "Budget":
        """Return a budget in one of three ways; without tokens and size it is the part.

        Args:
            keep: a part.
            tokens: a number for each row.
            size: bytes for each row, as "8MB".
            token_bytes: of one token in one row.

        Raises:
            PipelineError: two budgets at once, no size, or one that has no room for a token.
        """
        if tokens is not None and size is not None:
            raise PipelineError(f"tokens={tokens} and bytes={size} are two budgets; give one")
        if size is not None:
            tokens = _bytes(size) // token_bytes
            if tokens < 1:
                raise PipelineError(
                    f"bytes={size} has no room for a token of {token_bytes} bytes; give more"
                )
        return cls(keep) if tokens is None else cls(1.0, tokens)

    @property
    def is_all(self) -> bool:
        """Whether every token is kept."""
        return self.keep >= 1 and self.most is None

    def __str__(self) -> str:
        return f"{self.keep:g} of a prompt" if self.most is None else f"{self.most} tokens"


def _bytes(text: str) -> int:
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})", text)
    if match is None:
        raise PipelineError(f"bytes='{text}' is no size; write it as 8MB, in {', '.join(UNITS)}")
    return int(float(match[1]) * UNITS[match[2]])
