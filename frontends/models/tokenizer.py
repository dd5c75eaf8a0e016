"""Text to tokens and back, with the chat template: what a compiled model keeps of its tokenizer.

Made from a tokenizer of transformers, or from what an artifact stored of one, so that a second run
needs neither transformers nor the model's files. Nothing here knows a model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from elidir.ir import ElidirError


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of the `tokenizers` library with a chat template.

    Args:
        text: its JSON, as `tokenizers` writes it.
        template: of a chat, in jinja2; "" for a model that does not chat.
        special: the text of its special tokens by name, for the template.
    """

    text: str
    template: str
    special: Mapping[str, str]

    @classmethod
    def of(cls, tokenizer: Any) -> "Tokenizer | None":
        """Return what transformers' tokenizer is made of, None if it is not of `tokenizers`."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        template = getattr(tokenizer, "chat_template", None) or ""
        if isinstance(template, Mapping):
            template = template.get("default", "")
        special = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        return cls(_unpadded(backend.to_str()), template, special)

    @cached_property
    def backend(self) -> Any:
        """The tokenizer of the `tokenizers` library."""
        from tokenizers import Tokenizer as Backend

        return Backend.from_str(self.text)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that the model begins a text with."""
        return list(self.backend.encode(text).ids)

    def encode_chat(self, text: str) -> list[int]:
        """Return the ids of a conversation that a user opens with `text`, up to the answer."""
        prompt = self.chat([{"role": "user", "content": text}])
        return list(self.backend.encode(prompt, add_special_tokens=False).ids)

    def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """Return a conversation as the model reads it, up to where it is to answer, if it is."""
        if not self.template:
            raise ElidirError("the model's tokenizer has no chat template; give it plain text")
        import jinja2

        try:
            return str(self._rendered(messages, answer))
        except jinja2.TemplateError as error:
            raise ElidirError(f"the chat template failed: {error}; give plain text") from error

    def _rendered(self, messages: Sequence[Mapping[str, str]], answer: bool) -> str:
        template = _environment().from_string(self.template)
        return template.render(messages=messages, add_generation_prompt=answer, **self.special)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of some ids."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self) -> "Stream":
        """Return a decoder that takes one token at a time."""
        return Stream(self)


BROKEN = "\ufffd"
"""What a text ends with when it stops within a character."""


@dataclass
class Stream:
    """Decodes token by token: a character of several tokens comes with the last of them."""

    tokenizer: Tokenizer
    _ids: list[int] = field(default_factory=list)
    _sent: int = 0

    def step(self, token: int) -> str:
        """Return the text that is complete with this token."""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        if text.endswith(BROKEN):
            return ""
        new, self._sent = text[self._sent :], len(text)
        if text.endswith("\n"):  # what follows does not hang on what came before
            self._ids, self._sent = [], 0
        return new

    def end(self) -> str:
        """Return what is left, though a character may not be whole."""
        return self.tokenizer.decode(self._ids)[self._sent :]


def _unpadded(text: str) -> str:
    """Return the JSON without the padding and truncation that a caller may have left in it."""
    data = json.loads(text)
    data["padding"] = data["truncation"] = None
    return json.dumps(data, ensure_ascii=False)


def _environment() -> Any:
    """Return jinja2 as transformers sets it up for chat templates: sandboxed."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    made.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
    made.globals |= {"raise_exception": refuse, "strftime_now": _now}
    return made


def _now(pattern: str) -> str:
    from datetime import datetime

    return datetime.now().astimezone().strftime(pattern)
