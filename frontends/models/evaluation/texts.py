"""Texts to measure on: files read with care, texts and token ids cut into windows of one length.

What is wrong with a text is one sentence, said before any model runs. Nothing is joined across
texts, and what is left at the end of a text is not used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from elidir.frontends.evaluation.errors import EvaluationError

USUAL_WINDOW = 1024


def read_text(path: Path) -> str:
    """Return the text of a file; raises `EvaluationError` if it is none, or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    if not text.strip():
        raise EvaluationError(f"{path} is empty; give a file with some text")
    return text


def window_length(wanted: int | None, positions: int | None) -> int:
    """Return the length of windows: as wanted, else 1,024 or all the positions of the model.

    Raises:
        EvaluationError: the model has fewer positions, or there is nothing to score.
    """
    length = min(USUAL_WINDOW, positions or USUAL_WINDOW) if wanted is None else wanted
    if length < 2:
        raise EvaluationError(f"a window of {length} tokens has none to predict; give 2 or more")
    if positions is not None and length > positions:
        raise EvaluationError(
            f"a window of {length} tokens is longer than the model's {positions} positions; "
            f"give {positions} or fewer"
        )
    return length


def token_windows(
    texts: Any, length: int, tokenizer: Any = None, *, most: int | None = None
) -> torch.Tensor:
    """Return i64[W, length], the windows of some texts, from each in turn.

    Args:
        texts: a text, or several; or token ids, of one text or several.
        length: tokens of a window, those that a text begins with included.
        tokenizer: makes ids of text; token ids need none.
        most: so many windows at most, spread evenly over all that there are.

    Raises:
        EvaluationError: no text, no tokenizer for it, or all are shorter than a window.
    """
    start = [] if tokenizer is None else _start(tokenizer)
    rows = [_ids(t, tokenizer) for t in _several(texts)]
    found = [w for row in rows for w in _cut(row, length, start)]
    if not found:
        longest = max(len(row) for row in rows)
        raise EvaluationError(
            f"the text is shorter than a window: {longest} tokens, and a window has {length}; "
            f"give a longer text, or a window of {max(longest, 2)} or fewer"
        )
    if most is not None and len(found) > most:
        found = [found[i * len(found) // most] for i in range(most)]
    return torch.tensor(found, dtype=torch.int64)


def _several(texts: Any) -> list[Any]:
    """Return texts or rows of ids as a list; raises if there is none, or one of them is empty."""
    if isinstance(texts, torch.Tensor):
        texts = texts.tolist()
    if isinstance(texts, str | Path) or (len(texts) and isinstance(texts[0], int)):
        texts = [texts]
    if not len(texts):
        raise EvaluationError("there is no text to measure on; give some text or token ids")
    return list(texts)


def _ids(text: Any, tokenizer: Any) -> list[int]:
    if isinstance(text, Path):
        text = read_text(text)
    if not isinstance(text, str):
        return _given(text)
    if not text.strip():
        raise EvaluationError("the text to measure on is empty; give some text")
    if tokenizer is None:
        raise EvaluationError("the model has no tokenizer; give tokenizer=, or token ids as texts")
    return list(tokenizer.encode(text))


def _given(ids: Sequence[Any]) -> list[int]:
    """Return the ids of a text that was given as such."""
    row = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in row):
        raise EvaluationError("a text is a string, a path or a list of token ids; give one of them")
    return row


def _start(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer begins every text with, such as bos_token_id."""
    empty, one = tokenizer.encode(""), tokenizer.encode("a")
    return list(empty) if empty and one[: len(empty)] == empty else []


def _cut(row: Sequence[int], length: int, start: list[int]) -> list[list[int]]:
    """Return the whole windows of a text; each begins as a text does."""
    begun = bool(start) and list(row[: len(start)]) == start
    body = list(row[len(start) :] if begun else row)
    head = start if begun else []
    size = length - len(head)
    starts = range(0, len(body) - size + 1, size) if size > 0 else ()
    return [head + body[at : at + size] for at in starts]
