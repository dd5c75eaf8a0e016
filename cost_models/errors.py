"""Errors of the cost models: bad target files, bad descriptions, and questions they cannot answer.

Only exception classes live here.
"""

from elidir.ir import ElidirError


class CostError(ElidirError):
    """Base of every error of the cost models."""


class TargetError(CostError):
    """A target is unknown, or its file is wrong."""


class DescriptionError(CostError):
    """A description of a model is unknown, or its file is wrong."""


class WorkError(CostError):
    """The work of an op or module cannot be counted."""
