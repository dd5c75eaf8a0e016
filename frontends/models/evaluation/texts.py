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
LEAST = 16
"""Tokens of the shortest window that is taken unasked: fewer say nothing."""
NO_TEXT = "a text is a string, a path or a list of token ids; give one of them"


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


def token_windows(
    texts: Any,
    window: int | None = None,
    tokenizer: Any = None,
    *,
    positions: int | None = None,
    most: int | None = None,
) -> torch.Tensor:
    """Return i64[W, window], the windows of some texts, from each in turn.

    Args:
        texts: a text, a path, or several; or token ids, of one text or several.
        window: tokens of a window, those that a text begins with included. None takes 1,024, or as
            many as the model has positions or the longest text has tokens.
        tokenizer: makes ids of text; token ids need none.
        positions: of the model, None for any number.
        most: so many windows at most, spread evenly over all that there are.

    Raises:
        EvaluationError: no text, no tokenizer for it, or all are shorter than a window.
    """
    if window is not None:
        _check_window(window, positions)
    rows = [_ids(t, tokenizer) for t in _several(texts)]
    longest = max(len(row) for row in rows)
    length = window or max(LEAST, min(USUAL_WINDOW, longest, positions or USUAL_WINDOW))
    if longest < length:
        raise EvaluationError(
            f"the text is shorter than a window: {longest} tokens, and a window has {length}; "
            "give a longer text, or a smaller window"
        )
    start = [] if tokenizer is None else start_of(tokenizer)
    found = [w for row in rows for w in _cut(row, length, start)]
    if most is not None and len(found) > most:
        found = [found[i * len(found) // most] for i in range(most)]
    return torch.tensor(found, dtype=torch.int64)


def _check_window(length: int, positions: int | None) -> None:
    if length < 2:
        raise EvaluationError(f"a window of {length} tokens has none to predict; give 2 or more")
    if positions is not None and length > positions:
        raise EvaluationError(
            f"a window of {length} tokens is longer than the model's {positions} positions; "
            f"give {positions} or fewer"
        )


def _several(texts: Any) -> list[Any]:
    """Return texts or rows of ids as a list; raises if there is none, or one of them is empty."""
    if isinstance(texts, torch.Tensor):
        texts = texts.tolist()
    if not isinstance(texts, str | Path | Sequence):
        raise EvaluationError(NO_TEXT)
    if isinstance(texts, str | Path) or (len(texts) and isinstance(texts[0], int)):
        texts = [texts]
    if not len(texts):
        raise EvaluationError("there is no text; give some text or token ids")
    return list(texts)


def _ids(text: Any, tokenizer: Any) -> list[int]:
    if isinstance(text, Path):
        text = read_text(text)
    if not isinstance(text, str):
        return _given(text)
    if not text.strip():
        raise EvaluationError("the text is empty; give some text")
    if tokenizer is None:
        raise EvaluationError(
            "the model has no tokenizer to read text with; give token ids, or, where quality is "
            "measured, tokenizer="
        )
    return list(tokenizer.encode(text))


def _given(ids: Sequence[Any]) -> list[int]:
    """Return the ids of a text that was given as such."""
    row = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in row):
        raise EvaluationError(NO_TEXT)
    return row


def start_of(tokenizer: Any) -> list[int]:
    """Return the ids that the tokenizer begins every text with, such as bos_token_id."""
    empty, one = tokenizer.encode(""), tokenizer.encode("a")
    return list(empty) if empty and one[: len(empty)] == empty else []


def _cut(row: Sequence[int], length: int, start: list[int]) -> list[list[int]]:
    """Return the whole windows of a text; each begins as a text does."""
    begun = bool(start) and list(row[: len(start)]) == start
    body = list(row[len(start) :] if begun else row)
    head = start if begun else []
    size = max(1, length - len(head))
    starts = range(0, len(body) - size + 1, size)
    return [head + body[at : at + size] for at in starts]
