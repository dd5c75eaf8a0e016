"""Errors of elidir: each message is one sentence with the remedy in it.

Only exception classes live here. A user's mistake is always a subclass of `ElidirError`; anything
else that escapes is a defect of elidir.
"""

import difflib
from collections.abc import Iterable


class ElidirError(Exception):
    """Base of every error that elidir raises on purpose; `at` says where it happened."""

    def __init__(self, message: str, *, at: str = "") -> None:
        super().__init__(f"{message} (at {at})" if at else message)
        self.message = message
        self.at = at


class ParseError(ElidirError):
    """The text of a module is malformed."""


class IRTypeError(ElidirError):
    """An op was given operands whose types do not fit it."""


class VerifyError(ElidirError):
    """A module breaks a rule of its stage."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known name, or the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
