"""Errors of passes and pipelines.

A `PipelineError` is a user's mistake (a name, an option, an order) and is raised before any work; a
`PassError` is a defect of a pass and comes with a file that shows it again.
"""

from elidir.ir import ElidirError


class PipelineError(ElidirError):
    """A pipeline names what is not there, or in an order that cannot run."""


class PassError(ElidirError):
    """A pass failed on a module, which was written to `reproducer` for `elidir opt`."""

    def __init__(self, message: str, *, by: str = "", reproducer: str = "") -> None:
        super().__init__(message)
        self.by, self.reproducer = by, reproducer


class BisectError(ElidirError):
    """There is no rewrite to find, or not by a binary search."""
