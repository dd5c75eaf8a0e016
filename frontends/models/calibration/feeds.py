"""Calibration data as inputs of `@forward`: windows of token ids, or inputs that are given whole.

A language model takes texts, files or token ids, cut into windows. Any other model takes the
inputs of some usual calls, each a dict by the names of its own arguments. Nothing runs here.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elidir.frontends.calibration.errors import CalibrationError
from elidir.frontends.evaluation import read_text, token_windows
from elidir.ir import Tensor, Value

USUAL_WINDOW = 512
BUNDLED = Path(__file__).with_name("sample.txt")


@dataclass(frozen=True, eq=False)
class Feeds:
    """Inputs of `@forward`, call by call; their tokens, a hash of the data, and what they were."""

    calls: tuple[tuple[torch.Tensor, ...], ...]
    tokens: int
    sha: str
    source: str


def bundled_text() -> str:
    """Return the text that is used where a language model is given none."""
    return BUNDLED.read_text(encoding="utf-8")


def bundled_data(tokenizer: Any, positions: int | None = None) -> str | torch.Tensor:
    """Return the bundled text; as i64[W, T] for a tokenizer with a chat template.

    Half of these windows open as a conversation: what stands first in a chat is not like what
    stands first in a text, and a grid that never saw it cuts it off.
    """
    text = bundled_text()
    if not getattr(tokenizer, "template", ""):
        return text
    window = min(USUAL_WINDOW, positions or USUAL_WINDOW)
    plain = token_windows(text, window, tokenizer)
    said = [part for part in text.split("\n\n") if part.strip()]
    opened = [
        (tokenizer.encode_chat(said[i % len(said)]) + row)[:window]
        for i, row in enumerate(plain.tolist())
    ]
    return torch.cat([torch.tensor(opened), plain])


def make_feeds(
    data: Any,
    params: Sequence[Value],
    names: Sequence[str],
    *,
    tokenizer: Any = None,
    positions: int | None = None,
) -> Feeds:
    """Return calibration data as inputs of `@forward`.

    Args:
        data: a text, a `Path`, token ids or several of these; or a list of dicts, each the inputs
            of one call.
        params: the parameters of `@forward`.
        names: for each parameter the model's own input.
        tokenizer: for texts.
        positions: tokens of a call at most.

    Raises:
        ElidirError: the data are empty, too short, unreadable, or not what the model reads.
    """
    if _are_calls(data):
        _check_tensors(data)
        calls = tuple(_call(given, params, names) for given in data)
        tokens = sum(call[0].shape[0] * (call[0].shape[1:2] or (1,))[0] for call in calls)
        return Feeds(calls, tokens, _sha(calls), "calls of the model")
    if [p.name for p in params] != ["ids", "valid", "pos"]:
        raise CalibrationError(
            f"the model reads {', '.join(filter(None, names))}, not token ids alone; give "
            "calibration= a list of dicts, each the inputs of one usual call"
        )
    windows = token_windows(data, _window(data, positions), tokenizer)
    calls = tuple(_tokens(row[None]) for row in windows)
    return Feeds(calls, windows.numel(), _sha(calls), _source(data))


def check_ids(feeds: Feeds, vocabulary: int | None) -> None:
    """Raise `CalibrationError` for a token id that a model has not; None takes any."""
    for ids in (call[0] for call in feeds.calls if vocabulary is not None):
        wrong = ids[(ids < 0) | (ids >= vocabulary)]
        if len(wrong):
            raise CalibrationError(
                f"token id {int(wrong[0])} of the calibration data is out of range: ids are from 0 "
                f"to {vocabulary - 1}; use the tokenizer of this model"
            )


def _source(data: Any) -> str:
    """Return what data are in words: files by their names."""
    first = data[0] if isinstance(data, list | tuple) else data
    if isinstance(first, Path):
        return ", ".join(p.name for p in ([data] if first is data else data))
    return "given text" if isinstance(first, str) else "token ids"


def _window(data: Any, positions: int | None) -> int:
    """Return the length of windows: rows of ids that are given as a matrix stay whole."""
    most = min(USUAL_WINDOW, positions or USUAL_WINDOW)
    if isinstance(data, torch.Tensor) and data.dim() == 2:
        return min(most, data.shape[1])
    return most


def _are_calls(data: Any) -> bool:
    return isinstance(data, list | tuple) and bool(data) and isinstance(data[0], Mapping)


def _check_tensors(calls: Sequence[Mapping[str, Any]]) -> None:
    for name, value in (item for call in calls for item in call.items()):
        if not isinstance(value, torch.Tensor):
            raise CalibrationError(
                f"the input '{name}' of a call of the calibration data is no tensor; give one"
            )


def _tokens(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1])[None]


def _call(
    given: Mapping[str, Any], params: Sequence[Value], names: Sequence[str]
) -> tuple[torch.Tensor, ...]:
    ids = next(iter(given.values()))
    return tuple(_argument(p, n, given.get(n), ids) for p, n in zip(params, names, strict=True))


def _argument(param: Value, name: str, value: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return one input; validity and positions may be left out."""
    if value is not None:
        found: torch.Tensor = value.bool() if param.name == "valid" else value
        return found
    if param.name == "valid":
        return torch.ones(ids.shape[:2], dtype=torch.bool)
    if param.name == "pos":
        return torch.arange(ids.shape[1]).expand(ids.shape[:2])
    if isinstance(param.type, Tensor) and not name:
        return torch.zeros_like(ids)
    raise CalibrationError(f"a call of the calibration data lacks the input '{name}'; give it")


def _sha(calls: Sequence[Sequence[torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for tensor in (t.contiguous() for call in calls for t in call):
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


# ---- what data are, before a model is there


def fingerprint(data: Any) -> str:
    """Return a hash of calibration data as a user gives them; raises if a file cannot be read."""
    digest = hashlib.sha256()
    for part in _parts(data):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _parts(data: Any) -> Iterator[bytes]:
    if isinstance(data, Path):
        yield _observed(data) if data.suffix == ".safetensors" else read_text(data).encode()
    elif isinstance(data, str):
        yield data.encode()
    elif isinstance(data, torch.Tensor):
        yield repr(data.tolist()).encode()
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield key.encode()
            yield from _parts(value)
    elif isinstance(data, list | tuple):
        for item in data:
            yield from _parts(item)
    else:
        yield repr(data).encode()


def _observed(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CalibrationError(
            f"cannot read the observations {path}: {error.strerror}; make them by "
            "`elidir calibrate`"
        ) from None
