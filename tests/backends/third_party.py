"""A backend that another package brings, as its entry point would: `make` returns `MADE`."""

from typing import Any

MADE: Any = None


def make() -> Any:
    """Return the backend."""
    return MADE
