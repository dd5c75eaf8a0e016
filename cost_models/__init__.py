"""Cost models: what a module costs on a target, in time, memory and energy, before anyone runs it.

`Work` counts, `Target` knows the hardware, `Model` turns the one into a `Cost` on the other, and
`report` adds up. Nothing here runs a model or imports torch, and nothing here changes a module.
"""

from elidir.cost_models.costing import report, snapshot, waterfall
from elidir.cost_models.describe import (
    Description,
    describe,
    descriptions,
    load_description,
)
from elidir.cost_models.errors import CostError, DescriptionError, TargetError, WorkError
from elidir.cost_models.formats import bits_per_weight, register_format, storage_format
from elidir.cost_models.joining import Earlier, joined, joined_snapshot
from elidir.cost_models.memory import Footprint, footprint, parameters, weight_bytes
from elidir.cost_models.phases import Line, Phase, Request, decode, lines, prefill
from elidir.cost_models.report import (
    Assumption,
    Comparison,
    LayerTime,
    Measured,
    Memory,
    Moment,
    NotModelled,
    PhaseCost,
    Report,
    Roof,
    Row,
    Snapshot,
    TargetReport,
    Total,
)
from elidir.cost_models.roofline import Bound, Choice, Confidence, Cost, Model
from elidir.cost_models.schema import Provenance, Quantity
from elidir.cost_models.target import (
    Agent,
    Path,
    Power,
    Target,
    TargetLike,
    dump_target,
    load_target,
    measured_file,
    targets,
)
from elidir.cost_models.work import (
    WORK,
    Arithmetic,
    Precision,
    Sizes,
    Store,
    Work,
    is_modelled,
    work,
    work_of,
)

__all__ = [
    "WORK",
    "Agent",
    "Arithmetic",
    "Assumption",
    "Bound",
    "Choice",
    "Comparison",
    "Confidence",
    "Cost",
    "CostError",
    "Description",
    "DescriptionError",
    "Earlier",
    "Footprint",
    "LayerTime",
    "Line",
    "Measured",
    "Memory",
    "Model",
    "Moment",
    "NotModelled",
    "Path",
    "Phase",
    "PhaseCost",
    "Power",
    "Precision",
    "Provenance",
    "Quantity",
    "Report",
    "Request",
    "Roof",
    "Row",
    "Sizes",
    "Snapshot",
    "Store",
    "Target",
    "TargetError",
    "TargetLike",
    "TargetReport",
    "Total",
    "Work",
    "WorkError",
    "bits_per_weight",
    "decode",
    "describe",
    "descriptions",
    "dump_target",
    "footprint",
    "is_modelled",
    "joined",
    "joined_snapshot",
    "lines",
    "load_description",
    "load_target",
    "measured_file",
    "parameters",
    "prefill",
    "register_format",
    "report",
    "snapshot",
    "storage_format",
    "targets",
    "waterfall",
    "weight_bytes",
    "work",
    "work_of",
]
