"""Keep a caller's model exactly as it was while it is being captured.

`untouched` is the only thing here: a context in which a model is in eval mode, uses attention and
experts that export, and may convert a part of itself while it runs; after it every module and
config holds what it held before, also when something raised. No weight is copied or written.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

ATTENTION = "sdpa"
EXPERTS = "batched_mm"  # the eager experts do not export, and the grouped ones sort the tokens


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Set the model up for capture, and give it back as it was."""
    restore = [_remember(owner) for owner in [*model.modules(), *_configs(model)]]
    try:
        _prepare(model)
        yield
    finally:
        for undo in restore:
            undo()


def is_hugging_face(model: object) -> bool:
    """Whether this is a model of transformers (which is not imported to find out)."""
    base = getattr(sys.modules.get("transformers"), "PreTrainedModel", None)
    return base is not None and isinstance(model, base)


def _remember(owner: Any) -> Callable[[], None]:
    """Copy the attributes of a module or config, one level of dicts deep (parameters, hooks)."""
    before = dict(vars(owner))
    tables = {k: dict(v) for k, v in before.items() if isinstance(v, dict)}

    def undo() -> None:
        now = vars(owner)
        now.clear()
        now.update(before)
        for name, table in tables.items():
            _refill(before[name], table)

    return undo


def _refill(held: Any, table: Mapping[Any, Any]) -> None:
    """Put the entries of a dict back, leaving it alone where nothing changed."""
    same = held.keys() == table.keys() and all(held[k] is v for k, v in table.items())
    if not same:
        held.clear()
        held.update(table)


def _configs(model: nn.Module) -> list[Any]:
    """Every config that the model or a part of it reads, once each."""
    found: dict[int, Any] = {}
    for module in model.modules():
        if is_hugging_face(module):
            _collect(module.config, found)
    return list(found.values())


def _collect(config: Any, found: dict[int, Any]) -> None:
    """Add a config and its sub-configs."""
    if config is None or id(config) in found:
        return
    found[id(config)] = config
    for name in getattr(config, "sub_configs", {}):
        _collect(getattr(config, name, None), found)


def _prepare(model: nn.Module) -> None:
    """Switch to eval mode and no cache, and to what exports best where a model can do it."""
    model.eval()
    for config in _configs(model):
        if hasattr(config, "use_cache"):
            config.use_cache = False
    for module in model.modules():
        module._apply = partial(_converted, module)  # type: ignore[method-assign]
        if is_hugging_face(module):
            _choose(module, "attn", ATTENTION)
            _choose(module, "experts", EXPERTS)


def _converted(module: nn.Module, convert: Callable[..., Any], recurse: bool = True) -> nn.Module:
    """Let a model call `.to(dtype)` on a part of itself: export cannot swap a weight for another.

    Routers of experts do so (Switch Transformers). The tables are put back as all else is.
    """
    for part in module.modules() if recurse else (module,):
        for table in (part._parameters, part._buffers):
            with torch.no_grad():
                table.update({n: convert(t) for n, t in table.items() if t is not None})
    return module


def _choose(model: Any, kind: str, wanted: str) -> None:
    """Set one implementation in a model's config if the model supports it.

    transformers' own setters log about each sub-model that cannot follow, so they are not used.
    """
    field = f"_{kind}_implementation_internal"
    able = getattr(model, f"_can_set_{kind}_implementation", None)
    if able is None or not hasattr(model.config, field) or not able():
        return
    if kind == "attn" and not _may_use_sdpa(model):
        return
    setattr(model.config, field, wanted)


def _may_use_sdpa(model: Any) -> bool:
    """Whether the model has this attention, and does not return what it cannot give."""
    asks = getattr(model.config, "output_attentions", False)
    return bool(getattr(model, "_supports_sdpa", False)) and not asks
