"""The error of evaluation: texts, tasks, metrics and bounds that cannot be used.

Only the exception lives here. It is raised before anything long begins.
"""

from elidir.ir import ElidirError


class EvaluationError(ElidirError):
    """A text, a task, a metric, a bound or a model that cannot be evaluated."""
