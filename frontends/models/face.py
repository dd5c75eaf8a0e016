"""How the outside calls a program: inputs by name, outputs by structure, and generation's defaults.

`Face` is data that is saved with a program; `face_of` asks a captured model for it. What the model
makes of positions that are left out is found by asking it, on a few tokens.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from elidir.frontends.signature import PLAIN, argument_names
from elidir.frontends.untouched import is_hugging_face, untouched
from elidir.ir import ElidirError

if TYPE_CHECKING:
    from elidir.frontends.capture import Capture


@dataclass(frozen=True)
class Face:
    """How the outside calls the program: inputs by name, outputs by structure, generation defaults.

    Args:
        inputs: for each parameter of `@forward` the model's own input, "" for one that it takes for
            granted.
        out_spec: rebuilds the model's output from flat ones, or finds what does when it is first
            needed; None gives a tuple.
        positions: what positions are if the caller leaves them out, a name of `POSITIONS`; "" if
            the model makes them in a way that is not known.
        defaults: generation options of the model.
        signature: the model's own arguments in order, as `argument_names` gives them.
        constants: by dotted name, the values of a call that the program holds as they are.
        demanded: those of them that are not the model's own defaults.
        places: for each result of `@forward`, its place among the model's flat outputs.
        fixed: the flat outputs that are no tensors, by their place.
        padding: the id of a padding token, where positions are counted after it.
        mute: why it cannot generate, "" if it can: the first result of `@forward` is then scores.
    """

    inputs: tuple[str, ...]
    out_spec: pytree.TreeSpec | Callable[[], pytree.TreeSpec] | None
    positions: str = "slots"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    signature: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    demanded: tuple[str, ...] = ()
    places: tuple[int, ...] = (0,)
    fixed: Mapping[int, Any] = field(default_factory=dict)
    padding: int = 0
    mute: str = ""

    def own_positions(self, ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return the positions i64[B, T] that the model itself would take.

        Raises:
            ElidirError: it counts in a way that is not known.
        """
        if not self.positions:
            raise ElidirError("the model counts positions in a way of its own; give position_ids=")
        return POSITIONS[self.positions](ids, valid, self.padding)

    def output(self, results: Sequence[Any]) -> Any:
        """Return the model's own kind of output, made of the results of `@forward`.

        What a pass adds behind them is not the model's, and is left out.
        """
        own = results[: len(self.places)]
        found = dict(self.fixed) | dict(zip(self.places, own, strict=True))
        flat = [found[place] for place in range(len(found))]
        spec = self.out_spec() if callable(self.out_spec) else self.out_spec
        return tuple(flat) if spec is None else pytree.tree_unflatten(flat, spec)


# ---- of a model

_GENERATION = (
    *("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "do_sample"),
    *("temperature", "top_k", "top_p", "repetition_penalty", "max_length", "max_new_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)


def face_of(model: Any, captured: "Capture", inputs: tuple[str, ...]) -> Face:
    """Return the face of a captured model, whose `@forward` takes these of its inputs."""
    call = model.forward if isinstance(model, torch.nn.Module) else model
    own = _default_arguments(model, call, captured)
    constants = {n: v for n, v in own.items() if n not in inputs} | dict(captured.constants)
    return Face(
        inputs=inputs,
        out_spec=captured.out_spec,
        positions=_own_positions(model) if "position_ids" in inputs else "slots",
        defaults=_generation_defaults(model),
        signature=argument_names(call),
        constants=constants,
        demanded=tuple(n for n, v in captured.constants.items() if n in own and own[n] != v),
        places=captured.places,
        fixed=captured.fixed,
        padding=_padding(model),
        mute=_mute(model, scores=captured.scores),
    )


def _generation_defaults(model: Any) -> dict[str, Any]:
    """Return the model's own generation options; what has no start of its own begins as a text."""
    generation = getattr(model, "generation_config", None)
    stated = generation.to_diff_dict() if generation is not None else {}
    found = {k: stated[k] for k in _GENERATION if stated.get(k) is not None}
    pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if pair and "bos_token_id" in found:
        found.setdefault("decoder_start_token_id", found["bos_token_id"])
    return found


def _default_arguments(model: Any, call: Any, captured: "Capture") -> dict[str, Any]:
    """Return the arguments that are no tensors, as the model takes them if they are left out."""
    parameters = inspect.signature(call).parameters
    own = {n: p.default for n, p in parameters.items() if isinstance(p.default, PLAIN)}
    if not is_hugging_face(model):
        return own
    own.pop("use_cache", None)
    return own | {"return_dict": captured.out_spec.type is not tuple}


NO_SCORES = (
    "it has no scores over a vocabulary that it was made to generate by; "
    "call it, or compile the class with a language model's head (AutoModelForCausalLM)"
)
OTHER_TOKENS = (
    "transformers feeds it other tokens than the prompt's when it generates, and elidir does not; "
    "call it"
)


def _mute(model: Any, *, scores: bool) -> str:
    """Return why a model cannot generate, "" if it can."""
    if not scores:
        return NO_SCORES
    if not is_hugging_face(model):
        return ""
    if not model.can_generate():
        return NO_SCORES
    return "" if _fed_as_it_is(model) else OTHER_TOKENS


def _fed_as_it_is(model: Any) -> bool:
    """Whether transformers gives the model its prompt's tokens, and no dummies (XLNet, XLM)."""
    ids = torch.ones(1, 3, dtype=torch.long)
    try:
        fed = model.prepare_inputs_for_generation(ids, attention_mask=ids, use_cache=False)
    except Exception:  # it wants what only its own generation loop has, and so is not asked
        return True
    found = fed.get("input_ids")
    return found is None or found.shape == ids.shape


# ---- positions that are left out


def _slots(ids: torch.Tensor, valid: torch.Tensor, padding: int) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


def _valid(ids: torch.Tensor, valid: torch.Tensor, padding: int) -> torch.Tensor:
    return (valid.long().cumsum(-1) - 1).clamp(min=0)


def _after_padding(ids: torch.Tensor, valid: torch.Tensor, padding: int) -> torch.Tensor:
    real = (ids != padding).long()
    return real.cumsum(-1) * real + padding


POSITIONS = {"slots": _slots, "valid": _valid, "after-padding": _after_padding}
"""How models count when they are told no positions: all tokens, valid ones (OPT), or those that are
not padding, from the row of the table that is behind the padding's (RoBERTa)."""


def _own_positions(model: Any) -> str:
    """Return which of `POSITIONS` gives the model's own answer on a short padded row, or ""."""
    padding = _padding(model)
    token = next(n for n in range(model.config.get_text_config().vocab_size) if n != padding)
    before = 2 if padding != 1 else 3  # so many that no two of the ways agree
    ids = torch.tensor([[padding] * before + [token] * 2])
    valid = torch.tensor([[0] * before + [1] * 2])
    with untouched(model), torch.no_grad():
        own = _first_output(model, ids, valid)
        for name, count in POSITIONS.items():
            given = _first_output(model, ids, valid, position_ids=count(ids, valid, padding))
            if torch.equal(own[:, before:], given[:, before:]):
                return name
    return ""


def _padding(model: Any) -> int:
    return getattr(getattr(model, "config", None), "pad_token_id", None) or 0


def _first_output(model: Any, ids: torch.Tensor, valid: torch.Tensor, **more: Any) -> torch.Tensor:
    inputs = {"input_ids": ids, "attention_mask": valid, **more}
    output = model(**{n: t.to(model.device) for n, t in inputs.items()}, use_cache=False)
    return output if isinstance(output, torch.Tensor) else output[0]
