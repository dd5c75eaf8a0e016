"""Read GGUF files: their metadata, their tensors as stored, and the model and tokenizer in them.

transformers reads SmolLM2's 98 MB in 17 s, nearly all of it spent on walking the token strings
twice and on building the table of tensor names once per module; here both are done once, and
tensors are dequantised whole. What the metadata mean (config, row orders, tokenizer) is still
asked of transformers, so that the loaded model is the one it would load, to the bit.
Nothing here is about any other file format.
"""

import mmap
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elidir.ir import ElidirError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class LoadError(ElidirError):
    """A model cannot be loaded from where it is said to be."""


@dataclass(frozen=True, eq=False)
class Storage:
    """A tensor as it is stored.

    Args:
        format: `f32`, `f16`, `bf16` or the name of a block format: `q4_1`, `q8_0`, `q6_k`.
        raw: u8[rows, bytes in a row]; a private memory map of the file where that is possible.
        shape: of the tensor that it stands for, in torch's order.
    """

    format: str
    raw: Bytes
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GgufFile:
    """A GGUF file: its metadata by key, and its tensors by GGUF's names, none of them read yet."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Storage]


# reading the file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
STRING, ARRAY = 8, 9
ALIGNMENT = 32


def read_gguf(path: str | Path) -> GgufFile:
    """Parse a GGUF file without reading its tensors.

    Raises:
        LoadError: there is no such file, or it is no GGUF, is cut short, or is of a kind that
            is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError(f"there is no file {path}; give the path of a .gguf file")
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise LoadError(
                f"{path} is no GGUF file: it does not begin with 'GGUF'; "
                "give a .gguf file, or a folder for other formats"
            )
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        return _parse(path, _Cursor(data))
    except (struct.error, UnicodeDecodeError, IndexError, ValueError, OverflowError) as error:
        reason = "it ends too early" if isinstance(error, struct.error) else error
        raise LoadError(
            f"{path} is a damaged GGUF file ({reason}); fetch or convert it again"
        ) from error


class _Cursor:
    """A place in the bytes of a file, moving on as values are read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 4

    def numbers(self, codes: str) -> tuple[Any, ...]:
        """Read little-endian numbers."""
        values = struct.unpack_from(f"<{codes}", self.data, self.at)
        self.at += struct.calcsize(f"<{codes}")
        return values

    def text(self) -> str:
        """Read a string."""
        (length,) = self.numbers("Q")
        end = self.at + length
        if end > len(self.data):
            raise ValueError("a string runs past its end")
        value = self.data[self.at : end].decode("utf-8")
        self.at = end
        return value

    def value(self, kind: int) -> Any:
        """Read a metadata value of any kind."""
        if kind in SCALARS:
            return self.numbers(SCALARS[kind])[0]
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"a value of unknown kind {kind}")
        inner, count = self.numbers("IQ")
        if inner in SCALARS:
            return list(self.numbers(f"{count}{SCALARS[inner]}"))
        return [self.value(inner) for _ in range(count)]


def _parse(path: Path, cursor: _Cursor) -> GgufFile:
    """The whole header."""
    (version,) = cursor.numbers("I")
    if version not in VERSIONS:
        raise LoadError(
            f"{path} is GGUF version {version}, and only versions 2 and 3 are read; "
            "convert it again with a current llama.cpp"
        )
    count, keys = cursor.numbers("QQ")
    metadata = {}
    for _ in range(keys):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.numbers("I")[0])
    infos = [_tensor_info(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    start = -(-cursor.at // alignment) * alignment
    data = np.frombuffer(cursor.data, dtype=np.uint8)
    tensors = {name: _storage(data, start + at, *rest) for name, at, *rest in infos}
    return GgufFile(path, metadata, tensors)


def _tensor_info(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    """Name, offset, shape and ggml's number of the type of one tensor."""
    name = cursor.text()
    (rank,) = cursor.numbers("I")
    dims = cursor.numbers(f"{rank}Q")
    kind, offset = cursor.numbers("IQ")
    return name, offset, dims[::-1], kind


def _storage(data: Bytes, at: int, shape: tuple[int, ...], kind: int) -> Storage:
    """A view of one tensor's bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    format_ = GGMLQuantizationType(kind)
    per_block, block_bytes = GGML_QUANT_SIZES[format_]
    row = shape[-1] // per_block * block_bytes
    rows = prod(shape[:-1])
    if at + rows * row > len(data):
        raise ValueError("its tensors run past its end")
    raw = data[at : at + rows * row].reshape(rows, row)
    return Storage(format_.name.lower(), raw, shape)


# dequantising


def dequantize(storage: Storage) -> Tensor:
    """The values of a stored tensor: f32[shape].

    Raises:
        LoadError: the format is not known.
    """
    known = DENSE.get(storage.format)
    if known is not None:
        return torch.from_numpy(storage.raw).view(known).float().reshape(storage.shape).clone()
    decode = DECODERS.get(storage.format)
    if decode is None:
        return _dequantize_elsewhere(storage)
    width, decoder = decode
    blocks = torch.from_numpy(storage.raw.reshape(-1, width))
    return decoder(blocks).reshape(storage.shape)


DENSE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def _half(blocks: Tensor, at: int) -> Tensor:
    """The f16 number at a byte of each block: f32[blocks, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """Low then high halves of bytes: u8[blocks, 16] to f32[blocks, 32]."""
    values = torch.empty(packed.shape[0], 32)
    values[:, :16] = packed & 15
    values[:, 16:] = packed >> 4
    return values


def _q4_0(blocks: Tensor) -> Tensor:
    """Values d (q - 8), 18 bytes for 32 values."""
    return _nibbles(blocks[:, 2:]).sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    """Values d q + m, 20 bytes for 32 values."""
    return _nibbles(blocks[:, 4:]).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    """Values d q, 34 bytes for 32 values."""
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


DECODERS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "q4_0": (18, _q4_0),
    "q4_1": (20, _q4_1),
    "q8_0": (34, _q8_0),
}


def _dequantize_elsewhere(storage: Storage) -> Tensor:
    """Let the gguf package decode a format that is not written out here."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as decode

    try:
        values = decode(storage.raw, GGMLQuantizationType[storage.format.upper()])
    except (KeyError, NotImplementedError) as error:
        raise LoadError(
            f"weights stored as {storage.format} cannot be read; convert the file to q4_1 or q8_0"
        ) from error
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(storage.shape)


# the model


def load_model(file: GgufFile) -> tuple[nn.Module, dict[str, Storage]]:
    """Build the model of a GGUF file, and say how each of its parameters is stored.

    Raises:
        LoadError: transformers does not know the architecture.
    """
    import transformers

    options = _config_options(file)
    config = transformers.AutoConfig.for_model(**options)
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    processor = _processor(file, options)
    if kind is None or processor is None:
        return _load_slowly(file), {}
    names = _parameter_names(file, kind, config)
    stored = {
        name: _in_order(storage, processor, gguf_name)
        for gguf_name, storage in file.tensors.items()
        if (name := names.get(gguf_name)) is not None
    }
    state = {name: dequantize(storage) for name, storage in stored.items()}
    with without_progress():
        model = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    return model.eval(), _with_tied(model, stored)


@contextmanager
def without_progress() -> Iterator[None]:
    """Keep transformers from drawing its progress bars; only the command line draws."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _config_options(file: GgufFile) -> dict[str, Any]:
    """The config's options, by transformers' own reading of the metadata.

    Its reader takes 5 s to walk a vocabulary, so that it is given a copy of the header without.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        skeleton = Path(folder) / file.path.name
        skeleton.write_bytes(_skeleton(file))
        try:
            options = load_gguf_checkpoint(str(skeleton))["config"]
        except (ValueError, KeyError) as error:
            raise LoadError(
                f"transformers cannot read the model in {file.path}: {error}; "
                "give the model as a Hugging Face folder instead"
            ) from error
    return dict(options)


def _skeleton(file: GgufFile) -> bytes:
    """A GGUF file with the same short metadata, and tensors of the same names but one value."""
    architecture = file.metadata.get("general.architecture", "")
    vocabulary = len(file.metadata.get("tokenizer.ggml.tokens", ()))
    metadata = {f"{architecture}.vocab_size": vocabulary} if vocabulary else {}
    metadata |= {k: v for k, v in file.metadata.items() if not isinstance(v, list) or len(v) < 512}
    pairs = b"".join(_text(key) + _value(value) for key, value in metadata.items())
    infos = b"".join(_text(name) + struct.pack("<IQIQ", 1, 1, 0, 0) for name in file.tensors)
    head = MAGIC + struct.pack("<IQQ", 3, len(file.tensors), len(metadata)) + pairs + infos
    return head + bytes(-len(head) % file.metadata.get("general.alignment", ALIGNMENT) + ALIGNMENT)


def _text(value: str) -> bytes:
    """A string as GGUF has it."""
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> bytes:
    """A metadata value with its kind before it."""
    if isinstance(value, list):
        items = [_value(item) for item in value] or [_value(0)]
        inner = items[0][:4]
        body = b"".join(item[4:] for item in items) if value else b""
        return struct.pack("<I", ARRAY) + inner + struct.pack("<Q", len(value)) + body
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    code, kind = ("?", 7) if isinstance(value, bool) else ("d", 12)
    if isinstance(value, int) and not isinstance(value, bool):
        code, kind = "q", 11
    return struct.pack(f"<I{code}", kind, value)


SIMPLE = ("TensorProcessor", "LlamaTensorProcessor", "Gemma2TensorProcessor")
"""Processors of transformers that turn one stored tensor into one parameter."""


def _processor(file: GgufFile, options: Mapping[str, Any]) -> Any:
    """What transformers does to each tensor, or None where it is more than one tensor at a time."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    architecture = file.metadata["general.architecture"]
    kind = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    return kind(config=dict(options)) if kind.__name__ in SIMPLE else None


def _in_order(storage: Storage, processor: Any, name: str) -> Storage:
    """The tensor with its rows in transformers' order; as f32 where values change as well."""
    if len(storage.shape) == 1:
        rows = np.arange(storage.shape[0], dtype=np.float32)
    else:
        rows = np.arange(storage.raw.shape[0], dtype=np.float32)[:, None]
    order = processor.process(weights=rows, name=name).weights
    if np.array_equal(order, rows):
        return storage
    if rows.ndim == 2 and np.array_equal(np.sort(order, axis=0), rows):
        return Storage(storage.format, storage.raw[order[:, 0].astype(np.int64)], storage.shape)
    values = processor.process(weights=dequantize(storage).numpy(), name=name).weights
    raw = np.ascontiguousarray(values, dtype=np.float32).reshape(storage.raw.shape[0], -1)
    return Storage("f32", raw.view(np.uint8), storage.shape)


def _parameter_names(file: GgufFile, kind: Any, config: Any) -> dict[str, str]:
    """The model's name of each of GGUF's tensors."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    known = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    table = get_tensor_name_map(
        known[file.metadata["general.architecture"]], config.num_hidden_layers
    )
    with torch.device("meta"):
        parameters = list(kind(config).state_dict())
    return dict(_pairs(parameters, table))


def _pairs(parameters: list[str], table: Any) -> Iterator[tuple[str, str]]:
    """GGUF's name and the model's, for each parameter that has one."""
    for parameter in parameters:
        stem, _, suffix = parameter.rpartition(".")
        found = table.get_name(stem) or table.get_name(stem.partition(".")[2])
        if found is not None:
            yield f"{found}.{suffix}", parameter


def _with_tied(model: nn.Module, stored: Mapping[str, Storage]) -> dict[str, Storage]:
    """The storages, with one more name for each parameter that is tied to another."""
    by_tensor = {id(model.get_parameter(name)): storage for name, storage in stored.items()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: by_tensor[id(p)] for name, p in every if id(p) in by_tensor}


def _load_slowly(file: GgufFile) -> nn.Module:
    """Let transformers load an architecture whose tensors are not one parameter each."""
    import transformers

    try:
        with without_progress():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(file.path.parent), gguf_file=file.path.name, dtype=torch.float32
            )
    except (ValueError, ImportError, NotImplementedError) as error:
        raise LoadError(
            f"transformers cannot load the model in {file.path}: {error}; "
            "give the model as a Hugging Face folder instead"
        ) from error
    return model.eval()  # type: ignore[no-any-return]


def load_tokenizer(file: GgufFile) -> Any:
    """The tokenizer of a GGUF file, None if it holds none.

    Raises:
        LoadError: its vocabulary is of a kind that is not known, or does not hold together.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    if "tokenizer.ggml.tokens" not in file.metadata:
        return None
    try:
        architecture, parts, options = get_gguf_tokenizer(str(file.path))
        backend, more = convert_gguf_tokenizer(architecture, parts)
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise LoadError(
            f"the tokenizer in {file.path} cannot be built: {error}; convert the file again"
        ) from error
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**options, **more})
