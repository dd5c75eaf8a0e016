"""`elidir.compile`: a function and a decorator, on a module, a module class, a function or a name.

Options are checked here, before any long work; what compiling does is `elidir.frontends.build`, and
what it gives back is in `compiled.py`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Never

import torch

from elidir.backends import backend_names, ir_dtype
from elidir.compiled import Compiled
from elidir.cost_models import load_target
from elidir.evaluate import Demand
from elidir.frontends import Options, Pictured, check_static
from elidir.frontends.calibration import check_data
from elidir.ir import DType, ElidirError, Stage, nearest
from elidir.passes import framed


def compile(
    model: Any = None,
    *,
    target: str = "cpu",
    pipeline: Any = "lossless",
    backend: str | Sequence[str] = "cpu",
    dynamic: bool | None = True,
    static: tuple[int, int] | None = None,
    example_inputs: Any = None,
    dtype: Any = None,
    calibration: Any = None,
    quality: str | None = None,
    quality_texts: Any = None,
    disable: bool = False,
    **unknown: Never,
) -> Any:
    """Compile a model; it is given back as it was.

    Args:
        model: an `nn.Module`, a Module class, a function of tensors, or the name of a model
            (`smollm2`, a Hugging Face folder, a GGUF file). Without it, a decorator.
        target: what plans and costs are for: a name of `elidir targets`, or a YAML file.
        pipeline: passes as text, a YAML file or objects; `lossless` keeps the model's outputs.
        backend: what runs: a name of `elidir backends`, or several in order of preference.
        dynamic: whether batch and length may vary; None, as torch.compile has it, means that they
            may.
        static: batch and length of a model of transformers that can be captured no other way.
        example_inputs: a tuple or dict of tensors of one usual call. Models of transformers need
            none; any other module is captured at its first call if none are given.
        dtype: floats of the program, such as torch.bfloat16; None keeps the model's.
        calibration: data for passes that need some: texts, `Path`s of text files, token ids, or a
            list of dicts with the inputs of some calls; or the `Path` of a file that `elidir
            calibrate` wrote. A named language model has a bundled text of some
            thousand tokens.
        quality: bounds such as "kl<=0.02, top1>=0.9", measured on `quality_texts` beside the
            original; a pipeline that misses one is refused, with the figures.
        quality_texts: a text, a `Path` or token ids, or several of them; None takes the texts of
            calibration, though a pass that saw a text in calibration does better on it.
        disable: give the model back uncompiled, as torch.compile does.
        unknown: none; a misspelt argument raises `ElidirError` with the nearest name.

    Returns `Compiled`; for a Module class, what makes compiled instances of it. Raises
    `ElidirError` for a wrong option (before any long work), a model that cannot be captured, or
    a bound that is missed (`QualityError`).
    """
    options = {k: v for k, v in locals().items() if k not in ("model", "unknown")}
    for name in unknown:
        raise ElidirError(f"compile has no argument '{name}'{nearest(name, options)}")
    if model is None:
        return functools.partial(compile, **options)
    if disable:
        return model
    chosen = check_options(pipeline, target, backend, dtype, dynamic=dynamic, static=static)
    if not isinstance(model, str):  # a named model has a bundled text
        check_data(chosen.pipeline, calibration)
    demand = Demand.of(quality, quality_texts, model, calibration)
    return demand.check(_compiled(model, chosen, example_inputs, calibration))


def _compiled(model: Any, chosen: Options, example_inputs: Any, calibration: Any) -> Any:
    if isinstance(model, str):
        from elidir.cache import compile_named

        return compile_named(model, chosen, calibration=calibration)
    if isinstance(model, Compiled):
        raise ElidirError("this is compiled already; give elidir.compile the model that it was")
    if isinstance(model, type):
        return _class_maker(model, chosen, example_inputs, calibration)
    if not callable(model):
        raise ElidirError(f"cannot compile {model!r:.40}; give a module or a function")
    if example_inputs is None and (parts := Pictured.of(model)) is not None:
        from elidir.pictures import CompiledPictures

        return CompiledPictures(parts, chosen, calibration=calibration)
    return Compiled(model, chosen, example_inputs, calibration=calibration)


def check_options(
    pipeline: Any,
    target: str,
    backend: str | Sequence[str],
    dtype: Any = None,
    *,
    dynamic: bool | None = True,
    static: tuple[int, int] | None = None,
) -> Options:
    """Return the options of a compilation; raises `ElidirError` for one that is wrong."""
    wanted = framed(pipeline)
    wanted.check(Stage.RAISED, wanted.needed())  # whether there is data is asked for elsewhere
    load_target(target)
    if static is not None:
        check_static(static)
    chosen = check_backends(backend), _dtype(dtype)
    return Options(target, pipeline, *chosen, dynamic is not False, static)


def _class_maker(
    cls: type, options: Options, example: Any, calibration: Any
) -> Callable[..., Compiled]:
    if not issubclass(cls, torch.nn.Module):
        raise ElidirError(f"cannot compile the class {cls.__name__}; give a subclass of nn.Module")

    @functools.wraps(cls, updated=())
    def make(*args: Any, **kwargs: Any) -> Compiled:
        return Compiled(cls(*args, **kwargs).eval(), options, example, calibration=calibration)

    return make


def check_backends(wanted: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of backends in order; raises `ElidirError` for one that is unknown."""
    names = (wanted,) if isinstance(wanted, str) else wanted
    if not isinstance(names, tuple | list) or not names:
        raise ElidirError(
            f"backend {wanted!r} is no name; give one of {', '.join(backend_names())}"
        )
    for name in names:
        if name not in backend_names():
            raise ElidirError(f"there is no backend '{name}'{nearest(name, backend_names())}")
    return tuple(names)


def _dtype(wanted: Any) -> DType | None:
    if wanted is None or isinstance(wanted, DType):
        return wanted
    found = ir_dtype(wanted) if isinstance(wanted, torch.dtype) else _named_dtype(str(wanted))
    if found is None or not found.is_float:
        raise ElidirError(f"dtype {wanted} is no float type; give float32, bfloat16 or float16")
    return found


def _named_dtype(name: str) -> DType | None:
    known = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}
    name = known.get(name, name)
    return next((d for d in DType if d.value == name), None)
