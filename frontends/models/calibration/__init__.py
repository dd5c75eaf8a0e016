"""Calibration: one pass over some data records what the passes of a pipeline need to know.

`observe` runs the program as it is before any pass that changes it, with recorders on its values,
in memory that does not grow with the data. What it returns is plain arrays with their provenance;
they can be kept in a file, and are refused for another network.
"""

from elidir.frontends.calibration.errors import CalibrationError
from elidir.frontends.calibration.feeds import Feeds, bundled_text, fingerprint, make_feeds
from elidir.frontends.calibration.observations import (
    Observations,
    Provenance,
    network_hash,
    read_observations,
    write_observations,
)
from elidir.frontends.calibration.observe import (
    Network,
    Observed,
    calibrate,
    check_data,
    observations_for,
    observe,
)

__all__ = [
    "CalibrationError",
    "Feeds",
    "Network",
    "Observations",
    "Observed",
    "Provenance",
    "bundled_text",
    "calibrate",
    "check_data",
    "fingerprint",
    "make_feeds",
    "network_hash",
    "observations_for",
    "observe",
    "read_observations",
    "write_observations",
]
