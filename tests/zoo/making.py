"""What a model of the zoo is made of: sizes, inputs, weights, and entries of transformers.

Nothing here asserts anything, and nothing is downloaded.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCAB = 100
LENGTH_LIMIT = 128

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Args:
        name: the family.
        factory: builds the model, in eval mode, the same weights each time.
        example: inputs of (batch, length) by name, as the model's forward takes them.
        causal: whether token t of the output depends on tokens up to t only.
        needs_example: whether capture must be given inputs (all but Hugging Face models).
    """

    name: str
    factory: Callable[[], nn.Module]
    example: Callable[[int, int], Inputs]
    causal: bool
    needs_example: bool = False


# inputs


def tokens(batch: int, length: int, *, seed: int = 0) -> Tensor:
    """Random token ids i64[batch, length]; ids 0 to 3 are left to padding and markers."""
    generator = torch.Generator().manual_seed(1000 * batch + length + seed)
    return torch.randint(4, VOCAB, (batch, length), generator=generator)


def left_padding(batch: int, length: int) -> Tensor:
    """Attention mask i64[batch, length]: row i starts with i tokens of padding."""
    padding = torch.arange(batch)[:, None].clamp(max=length - 1)
    return (torch.arange(length)[None, :] >= padding).long()


def plain_inputs(batch: int, length: int) -> Inputs:
    """Token ids alone."""
    return {"input_ids": tokens(batch, length)}


def masked_inputs(batch: int, length: int) -> Inputs:
    """Token ids and a left-padded attention mask."""
    return {"input_ids": tokens(batch, length), "attention_mask": left_padding(batch, length)}


def decoder_inputs(batch: int, length: int) -> Inputs:
    """Token ids, a left-padded attention mask, and positions counted from the first real token."""
    mask = left_padding(batch, length)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {**masked_inputs(batch, length), "position_ids": positions}


def pair_inputs(batch: int, length: int) -> Inputs:
    """Inputs of an encoder-decoder: the decoder's length is two less than the encoder's."""
    decoder = tokens(batch, max(length - 2, 1), seed=7)
    return {**masked_inputs(batch, length), "decoder_input_ids": decoder}


def image_inputs(batch: int, length: int) -> Inputs:
    """Pixels f32[batch, 3, 16, 16]; an image has no length of its own choosing."""
    del length
    generator = torch.Generator().manual_seed(batch)
    return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=generator)}


def audio_inputs(batch: int, length: int) -> Inputs:
    """Mel features f32[batch, 8, 20] and the tokens of a decoder."""
    generator = torch.Generator().manual_seed(batch)
    features = torch.randn(batch, 8, 20, generator=generator)
    return {"input_features": features, "decoder_input_ids": tokens(batch, length)}


# weights


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every matrix unit gain and every vector some noise, so that no output is degenerate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log") or not weight.is_floating_point():
                continue
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            if weight.dim() < 2:
                weight.add_(0.1 * noise)
            else:
                weight.copy_(noise / math.sqrt(weight[0].numel() if weight.dim() != 3 else 32))
    return model.eval()


# Hugging Face families

LLAMA_LIKE: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH_LIMIT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def without(*names: str, **changes: Any) -> dict[str, Any]:
    """The common sizes but for some names, with some changes."""
    return {k: v for k, v in LLAMA_LIKE.items() if k not in names} | changes


def build(family: str, auto: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a Hugging Face model of a family through one of the Auto classes."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **options)
        model = getattr(transformers, auto).from_config(config)
    return randomize(model)


def decoder(family: str, *, example: Any = decoder_inputs, **changes: Any) -> Entry:
    """A causal decoder with Llama's names of sizes."""
    return exact(family, LLAMA_LIKE | changes, example=example)


def exact(
    family: str,
    options: Mapping[str, Any],
    *,
    auto: str = "AutoModelForCausalLM",
    example: Callable[[int, int], Inputs] = decoder_inputs,
    causal: bool = True,
    name: str = "",
) -> Entry:
    """An entry whose options are given wholly."""
    return Entry(name or family, lambda: build(family, auto, options), example, causal)


GPT2_LIKE = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": LENGTH_LIMIT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT_LIKE = without("num_key_value_heads")
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
