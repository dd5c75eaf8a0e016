"""The runtime's errors, all of them raised before any step runs.

Only exception classes live here. Each message is one sentence with the remedy in it.
"""

from elidir.ir import ElidirError


class InputError(ElidirError):
    """Token ids, a mask, positions or an argument that cannot be used."""


class CacheError(ElidirError):
    """A KV cache was asked for what it does not hold, or has no room for."""
