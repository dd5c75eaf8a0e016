"""Evaluation: what a compiled model is worth beside the original, measured through its cache.

`measure_quality` compares two models on text; `original_program` gives the model to compare with,
over the same weights. All of it works on language models of the runtime, which the face makes.
"""

from elidir.frontends.evaluation.errors import EvaluationError
from elidir.frontends.evaluation.intervals import Estimate, bootstrap
from elidir.frontends.evaluation.original import check_scorable, original_program
from elidir.frontends.evaluation.quality import Quality, Speed, measure_quality
from elidir.frontends.evaluation.scoring import Feeding, Window
from elidir.frontends.evaluation.texts import read_text, token_windows

__all__ = [
    "Estimate",
    "EvaluationError",
    "Feeding",
    "Quality",
    "Speed",
    "Window",
    "bootstrap",
    "check_scorable",
    "measure_quality",
    "original_program",
    "read_text",
    "token_windows",
]
