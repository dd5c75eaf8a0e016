"""Errors of weights, raised by what loads them and by what makes them of others.

They are apart from the store so that both may raise them. Nothing else lives here.
"""

from elidir.ir import ElidirError


class WeightError(ElidirError):
    """A weight is missing, or is not what the module's table says."""
