"""Passes: what changes a module, in which order, and what is watched on the way.

`Pass` is one change with typed options, `Pipeline` an order of them in three spellings; instruments
look between two passes. Passes never execute a model: what they know of data, others observed.
"""

from elidir.passes.base import (
    Applied,
    Context,
    Invariant,
    Missed,
    Pass,
    PassResult,
    Remark,
)
from elidir.passes.bisect import Culprit, bisect
from elidir.passes.embedding import embedding_of, over_embeddings
from elidir.passes.errors import BisectError, PassError, PipelineError
from elidir.passes.instruments import (
    CostDelta,
    Dump,
    History,
    Instrument,
    Print,
    Skip,
    Time,
    Verify,
)
from elidir.passes.observed import (
    ATTENTION_LOST,
    LINEAR_INPUTS,
    SHARES,
    AttentionLost,
    LinearInput,
)
from elidir.passes.options import Option, Range, Ratio, options_of
from elidir.passes.pipeline import (
    CLEAN_UP,
    Fixpoint,
    Pipeline,
    PipelineResult,
    Record,
    framed,
)
from elidir.passes.preset import load_preset, preset_names
from elidir.passes.registry import find_pass, passes, register
from elidir.passes.reproducer import read_reproducer, reproducer_data, reproducer_text

__all__ = [
    "ATTENTION_LOST",
    "CLEAN_UP",
    "LINEAR_INPUTS",
    "SHARES",
    "Applied",
    "AttentionLost",
    "BisectError",
    "Context",
    "CostDelta",
    "Culprit",
    "Dump",
    "Fixpoint",
    "History",
    "Instrument",
    "Invariant",
    "LinearInput",
    "Missed",
    "Option",
    "Pass",
    "PassError",
    "PassResult",
    "Pipeline",
    "PipelineError",
    "PipelineResult",
    "Print",
    "Range",
    "Ratio",
    "Record",
    "Remark",
    "Skip",
    "Time",
    "Verify",
    "bisect",
    "embedding_of",
    "find_pass",
    "framed",
    "load_preset",
    "options_of",
    "over_embeddings",
    "passes",
    "preset_names",
    "read_reproducer",
    "register",
    "reproducer_data",
    "reproducer_text",
]
