"""Evaluation: what a compiled model is worth beside the original, measured through its cache.

`measure_quality` compares two models on text, `Asking` on the questions of a task;
`original_program` gives the model to compare with, over the same weights. All of it works on
language models of the runtime, which the face makes.
"""

from elidir.frontends.evaluation.bounds import Bound, QualityError, check_bounds, read_bounds
from elidir.frontends.evaluation.errors import EvaluationError
from elidir.frontends.evaluation.evaluation import Evaluation
from elidir.frontends.evaluation.harness import Harness
from elidir.frontends.evaluation.hidden import Needle, Passkey
from elidir.frontends.evaluation.intervals import Estimate, bootstrap
from elidir.frontends.evaluation.original import original_program
from elidir.frontends.evaluation.passages import Hotpot, Squad
from elidir.frontends.evaluation.quality import Quality, Speed, measure_quality
from elidir.frontends.evaluation.scoring import Feeding, Window
from elidir.frontends.evaluation.tables import HEAD
from elidir.frontends.evaluation.tasks import Question, Task, task, task_of, tasks
from elidir.frontends.evaluation.texts import read_text, token_windows
from elidir.frontends.evaluation.trials import Asking, TaskResult, contains

__all__ = [
    "HEAD",
    "Asking",
    "Bound",
    "Estimate",
    "Evaluation",
    "EvaluationError",
    "Feeding",
    "Harness",
    "Hotpot",
    "Needle",
    "Passkey",
    "Quality",
    "QualityError",
    "Question",
    "Speed",
    "Squad",
    "Task",
    "TaskResult",
    "Window",
    "bootstrap",
    "check_bounds",
    "contains",
    "measure_quality",
    "original_program",
    "read_bounds",
    "read_text",
    "task",
    "task_of",
    "tasks",
    "token_windows",
]
