"""The class by which lm-eval evaluates a compiled model, and lm-eval's own command line with it.

`lm_eval.simple_evaluate(model=ElidirLM(compiled=fast), ...)`, or `python -m elidir.harness run
--model elidir --model_args model=smollm2,pipeline=...`. This module alone imports lm-eval; how
requests are answered is in `elidir.frontends.evaluation`.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from elidir.compiled import Compiled
from elidir.frontends import EvaluationError, Harness

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise EvaluationError(
        f"lm-eval cannot be imported ({error}); pip install 'elidir[eval]'"
    ) from None


@register_model("elidir")
class ElidirLM(LM):
    """A compiled model for lm-eval, scored through prefill and then the cache.

    Args:
        compiled: a compiled model; or give `model` and what to compile it with.
        model: its name, as the command line takes it.
        pipeline: passes as text.
        backend: what runs, in order of preference, with plus signs between.
        dtype: floats of the program.
        chunk: tokens of each step after a context.
        max_gen_toks: new tokens where a task does not say.
        others: what lm-eval passes to every model (batch_size, device); of no effect.
    """

    def __init__(
        self,
        compiled: Compiled | None = None,
        model: str | None = None,
        pipeline: str = "lossless",
        backend: str = "cpu",
        dtype: str | None = None,
        chunk: int = 64,
        max_gen_toks: int = 256,
        **others: Any,
    ) -> None:
        super().__init__()
        del others
        if (compiled is None) == (model is None):
            raise EvaluationError("give ElidirLM a compiled model, or the name of a model")
        if compiled is None:
            from elidir.compiler import compile

            compiled = compile(model, pipeline=pipeline, backend=backend.split("+"), dtype=dtype)
        if compiled.tokenizer is None:
            raise EvaluationError("the model has no tokenizer that reads text; compile it by name")
        self.compiled = compiled
        language_model = compiled.language_model()
        self.harness = Harness(language_model, compiled.tokenizer, int(chunk), int(max_gen_toks))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return log-likelihood and whether greedy, of (context, continuation) requests."""
        found = self.harness.loglikelihoods([r.args for r in requests])
        return [self._kept("loglikelihood", r, x) for r, x in zip(requests, found, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-likelihood of whole texts."""
        name = "loglikelihood_rolling"
        return [self._kept(name, r, self.harness.rolling(r.args[0])) for r in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the text after each context, up to its stop strings."""
        return [self._kept("generate_until", r, self.harness.until(*r.args)) for r in requests]

    def _kept(self, name: str, request: Any, found: Any) -> Any:
        """Let lm-eval's cache of answers have one."""
        self.cache_hook.add_partial(name, request.args, found)
        return found

    # -- chat

    @property
    def tokenizer_name(self) -> str:
        """A name that is another's for another tokenizer."""
        text = self.compiled.tokenizer.text + self.compiled.tokenizer.template
        return f"elidir-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the chat template of the model, "" if none is wanted."""
        return self.compiled.tokenizer.template if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the model reads it."""
        return self.compiled.tokenizer.chat(chat_history, answer=add_generation_prompt)


def main() -> None:
    """Run lm-eval's command line, to which the model `elidir` is known."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
