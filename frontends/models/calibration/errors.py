"""The error of calibration: data that cannot be used, and observations of another network.

Only the exception lives here. It is raised before anything long begins wherever that can be known.
"""

from elidir.ir import ElidirError


class CalibrationError(ElidirError):
    """Calibration data are missing or cannot be used, or observations are of another network."""
