"""torch.export of a model with as many dynamic dimensions as it allows, and what if it refuses.

A refusal is read for what export suggests (narrower bounds, equal dimensions) and tried again; what
remains is told in one sentence with the place in the model's code. What comes out is described in
`capture`.
"""

import contextlib
import gc
import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from elidir.frontends import signature as sig
from elidir.frontends.signature import CaptureError, Feed, SizesError
from elidir.frontends.untouched import is_hugging_face


class FunctionModule(nn.Module):
    """A function as a module, since export takes nothing else."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        try:
            inspect.signature(function)
        except ValueError:
            name = getattr(function, "__name__", repr(function))
            raise CaptureError(
                f"the arguments of {name}, which is not written in Python, cannot be known; "
                f"compile a function that calls it"
            ) from None
        self.function = function
        self.forward = function


def export(
    module: nn.Module, feed: Feed, *, falls_back: bool
) -> tuple[ExportedProgram, Feed, list[str]]:
    """Export with as many dynamic dimensions as the model allows."""
    try:
        return (*_export_bounded(module, feed), [])
    except _RefusedError as refused:
        if not falls_back or not feed.names:
            raise refused.error(module, feed) from refused.cause
        fixed = feed.names - {sig.BATCH} or feed.names
        remark = f"{' and '.join(sorted(fixed))} fixed: {refused.reason}"
    program, used, more = export(module, sig.freeze(feed, fixed), falls_back=falls_back)
    return program, used, [remark, *more]


def _export_bounded(
    module: nn.Module, feed: Feed, attempts: int = 4, *, lenient: bool = False
) -> tuple[ExportedProgram, Feed]:
    """Export, narrowing the bounds of dimensions as export suggests."""
    try:
        return _export_once(module, feed, lenient=lenient), feed
    except _RefusedError as refused:
        narrowed = _narrow(feed, str(refused.cause))
        if attempts == 1 or (narrowed is None and (lenient or not refused.is_harmless)):
            raise
    return _export_bounded(module, narrowed or feed, attempts - 1, lenient=narrowed is None)


def _export_once(module: nn.Module, feed: Feed, *, lenient: bool) -> ExportedProgram:
    """Export with exactly these dimensions; if lenient, guards become assertions."""
    example = sig.stretch(feed)
    with torch.no_grad(), _swiftly(), quiet() as watch:
        try:
            return torch.export.export(
                module,
                example.args,
                example.kwargs,
                dynamic_shapes=_shapes(module, example),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=lenient,
            )
        except Exception as error:  # export raises whatever the model raises
            raise _RefusedError(error, watch) from error


def _shapes(module: nn.Module, feed: Feed) -> dict[str, Any]:
    """The dimensions of each argument, as export wants them."""
    named = {name: Dim(name, min=lo, max=hi) for name, (lo, hi) in feed.limits.items()}
    leaves = [
        leaf and {i: named[d] for i, d in enumerate(leaf.dims) if isinstance(d, str)}
        for leaf in feed.leaves
    ]
    spec = pytree.tree_structure((feed.args, feed.kwargs))
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)


class _RefusedError(Exception):
    """Export said no."""

    def __init__(self, cause: Exception, watch: "_Watch") -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.watch = watch
        self.place = next(iter(watch.fixed.values()), "") or _last_place(cause)

    @property
    def is_harmless(self) -> bool:
        """Whether export only minds single sizes that torch, not the model, tells from others.

        Slicing a table to a length asks whether the length is the table's own; either way the
        result is the same. Where the model's code asks, it is not.
        """
        odd = re.findall(r"satisfy the generated guard .* != (\d+)\.", str(self.cause))
        asked = {number for guard in self.watch.branches for number in re.findall(r"\d+", guard)}
        return bool(odd) and "specialized" not in str(self.cause) and not asked & set(odd)

    @property
    def reason(self) -> str:
        """One line: what, and where in the model."""
        lines = (line.strip(" -") for line in str(self.cause).splitlines())
        useful = [line for line in lines if line and "TORCH_LOGS" not in line]
        first = _in_our_words(useful[0]) if useful else type(self.cause).__name__
        return f"{first[:200]}{f' ({self.place})' if self.place else ''}"

    def error(self, module: nn.Module, feed: Feed) -> CaptureError:
        """The whole refusal, with the remedy."""
        function = getattr(module, "function", None) if isinstance(module, FunctionModule) else None
        what = getattr(function, "__name__", type(module).__name__)
        if (own := _own_failure(module, feed)) is not None:
            return CaptureError(
                f"{what} does not run on what it is captured with: {own}; give example_inputs= of "
                "a call that works"
            )
        if is_hugging_face(module) and sig.LENGTH in feed.names and self.is_about_sizes:
            return SizesError(
                f"{what} cannot be exported for any length: {self.reason}; "
                "state the batch and length with static=(1, 128), or give example_inputs="
            )
        return CaptureError(
            f"{what} cannot be exported: {self.reason}; mend the model's code there, "
            "or compile the part of the model around it"
        )

    @property
    def is_about_sizes(self) -> bool:
        """Whether stated sizes would help: data that decide are no matter of sizes."""
        return DATA not in str(self.cause)


DATA = "Could not guard on data-dependent"


def _own_failure(module: nn.Module, feed: Feed) -> str | None:
    """What the model itself raises on its example, None if it runs: not all is export's fault."""
    try:
        with torch.no_grad(), quiet():
            module(*feed.args, **feed.kwargs)
    except Exception as error:  # a model may raise anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        place = _last_place(error)
        return f"{lines[0][:200]}{f' ({place})' if place else ''}"
    return None


def _in_our_words(line: str) -> str:
    """What export says of a dimension, said plainly; anything else as it is."""
    if DATA in line:
        return "the model's code decides by the values of its data"
    fixed = re.search(r"You marked (\w+) as dynamic but .* constant \((\d+)\)", line)
    if fixed:
        return f"the model's code fixes {fixed[1]} to the example's {fixed[2]}"
    guard = re.search(r"Not all values of (\w+) = (\S+) in .* the generated guard (.+?)\.?$", line)
    if guard:
        condition = guard[3].replace(guard[2], guard[1])
        return f"the model's code does not treat every {guard[1]} alike, but asks if {condition}"
    return line


def _last_place(error: BaseException) -> str:
    """Where in the model an error arose: the innermost frame outside torch and elidir."""
    told = re.search(r'File "([^"]+)", line (\d+), in (\w+)', str(error))
    if told and not _is_ours(told[1]):
        return _place(told[1], int(told[2]), told[3])
    walk = traceback.walk_tb(error.__traceback__)
    return _innermost([(f.f_code.co_filename, line, f.f_code.co_name) for f, line in walk])


Frame = tuple[str, int, str]


def _stack() -> list[Frame]:
    """File, line and function of every frame now, the innermost last."""
    walk = traceback.walk_stack(None)
    return [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in walk][::-1]


def _innermost(frames: Sequence[Frame]) -> str:
    """The innermost frame that is the model's."""
    theirs = (frame for frame in reversed(frames) if not _is_ours(frame[0]))
    return next((_place(*frame) for frame in theirs), "")


TORCH = str(Path(torch.__file__).parent)
HERE = str(Path(__file__).parent)
STANDARD = str(Path(logging.__file__).parents[1])


def _is_ours(filename: str) -> bool:
    """Whether a file belongs to torch, to elidir, to Python or to nobody."""
    if filename.startswith((TORCH, HERE, "<")):
        return True
    return filename.startswith(STANDARD) and "site-packages" not in filename


def _place(filename: str, line: int, function: str) -> str:
    """A place in the model's source: `modeling_mamba.py:311 in slow_forward`."""
    return f"{Path(filename).name}:{line} in {function}"


class _Watch(logging.Handler):
    """Notes what export decides about sizes: `fixed` ones, and `branches` of the model's code."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.fixed: dict[str, str] = {}
        self.branches: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the place where a symbol became a number, or a guard that the model asked for."""
        message, args = str(record.msg), record.args
        if not isinstance(args, tuple) or len(args) < 2:
            return
        if message.startswith("set_replacement") and str(args[1]).isdigit():
            self.fixed.setdefault(str(args[0]), _innermost(_stack()))
        if "[guard added]" in message and _asked_by_model():
            self.branches.append(re.sub(r"\bs\d+\b", "", str(args[1])))


def _asked_by_model() -> bool:
    """Whether the truth of a size is being asked by the model's code rather than by torch."""
    inner = ""
    for filename, _, _ in reversed(_stack()):
        if not _is_ours(filename):
            return inner == torch.__file__
        inner = filename
    return False


def _torch_loggers() -> list[logging.Logger]:
    """Loggers of torch that write by themselves."""
    known = logging.root.manager.loggerDict
    loggers = (logging.getLogger(name) for name in known if name.startswith("torch."))
    return [logger for logger in loggers if logger.handlers]


@contextlib.contextmanager
def quiet() -> Iterator[_Watch]:
    """Keep export from printing and logging, and watch what it decides."""
    watch = _Watch()
    sizes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    # "torch.__trace" is torch's record of everything it does: it triples the time under pytest.
    loggers = [sizes, *map(logging.getLogger, ("torch", "torch.__trace")), *_torch_loggers()]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.propagate, logger.handlers = False, []
    sizes.setLevel(logging.INFO)
    sizes.addHandler(watch)
    logging.getLogger("torch").addHandler(logging.NullHandler())
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield watch
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers


@contextlib.contextmanager
def _swiftly() -> Iterator[None]:
    """Save a sixth of export's time: no stack trace for each node, no collection of its garbage.

    Nodes keep the path of their module; a capture of SmolLM2 leaves some 2 MB more garbage.
    """
    collecting, traced = gc.isenabled(), fx.config.do_not_emit_stack_traces
    gc.disable()
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = traced
        if collecting:
            gc.enable()


SUGGESTION = re.compile(r"^  (\w+) = (.+)$", re.MULTILINE)
RANGE = re.compile(r"Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)")


def _narrow(feed: Feed, message: str) -> Feed | None:
    """The feed with the bounds that export suggests; None if it suggests something else."""
    changed = None
    for name, remedy in SUGGESTION.findall(message):
        found = RANGE.fullmatch(remedy)
        if found and name in feed.limits:
            lo, hi = feed.limits[name]
            changed = sig.bound(changed or feed, name, int(found[1] or lo), int(found[2] or hi))
        elif remedy in feed.names and name in feed.names:
            changed = sig.merge(changed or feed, name, remedy)
        else:
            return None
    return changed
