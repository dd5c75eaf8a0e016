"""Tiny random models of many families, for tests that must hold on every architecture.

`NAMED` holds the families that elidir promises to capture and raise, three plain decoders written
here in different styles among them; `OTHERS` holds further families of transformers. Each entry
builds its model with two layers from a fixed seed and makes inputs of any batch and length, left
padding included. Nothing here asserts anything, and nothing is downloaded.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
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


def hugging_face() -> list[Entry]:
    """The promised families of transformers."""
    return [
        decoder("llama"),
        decoder("mistral", sliding_window=5),
        decoder("qwen2"),
        decoder("qwen3", head_dim=16),
        decoder("gemma", head_dim=16),
        decoder("phi", partial_rotary_factor=0.5),
        exact("gpt2", GPT2_LIKE),
        decoder("gpt_neox", rotary_pct=0.5),
        exact("opt", without("intermediate_size", ffn_dim=64, word_embed_proj_dim=32)),
        exact(
            "bloom",
            {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
            example=masked_inputs,
        ),
        decoder("falcon", new_decoder_architecture=False, multi_query=True, alibi=False),
        decoder("mixtral", **EXPERTS),
        exact("bert", BERT_LIKE, auto="AutoModel", example=masked_inputs, causal=False),
        exact(
            "vit",
            without("vocab_size", "num_key_value_heads") | {"image_size": 16, "patch_size": 4},
            auto="AutoModelForImageClassification",
            example=image_inputs,
            causal=False,
        ),
    ]


# plain decoders


class TriangleBlock(nn.Module):
    """Attention by matmul and softmax under a stored triangle, then a GELU feed-forward."""

    def __init__(self, width: int, heads: int, limit: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.before = nn.LayerNorm(width)
        self.after = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        future = torch.triu(torch.ones(limit, limit, dtype=torch.bool), diagonal=1)
        self.register_buffer("future", future)

    def attend(self, x: Tensor) -> Tensor:
        """Softmax attention: f32[B, T, D] to f32[B, T, D]."""
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q = self.query(x).view(split).transpose(1, 2)
        k = self.key(x).view(split).transpose(1, 2)
        v = self.value(x).view(split).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(self.future[:length, :length], float("-inf"))
        mixed = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: Tensor) -> Tensor:
        """One pre-norm block."""
        x = x + self.attend(self.before(x))
        return x + self.down(F.gelu(self.up(self.after(x))))


class TriangleDecoder(nn.Module):
    """Learned positions, a stored triangle, attention by hand, an untied head."""

    def __init__(self, width: int = 32, heads: int = 4, limit: int = LENGTH_LIMIT) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, width)
        self.places = nn.Embedding(limit, width)
        self.blocks = nn.ModuleList(TriangleBlock(width, heads, limit) for _ in range(2))
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits f32[B, T, V] of token ids i64[B, T]."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.places(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))


class Scale(nn.Module):
    """RMS norm by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * self.gain


class FusedBlock(nn.Module):
    """One projection for q, k and v, interleaved rotary positions, is_causal attention, SwiGLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = Scale(width), Scale(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def attend(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Attention with rotated queries and keys."""
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(
            turn_pairs(q, *table), turn_pairs(k, *table), v, is_causal=True
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """One pre-norm block."""
        x = x + self.attend(self.first(x), table)
        gate, up = self.gate_up(self.second(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs (GPT-J's layout): x f32[B, H, T, D], cos and sin f32[T, D/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class FusedDecoder(nn.Module):
    """Rotary positions from a stored table, RMS norms by hand, a head tied to the embedding."""

    def __init__(self, width: int = 32, heads: int = 4, limit: int = LENGTH_LIMIT) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCAB, width)
        self.h = nn.ModuleList(FusedBlock(width, heads) for _ in range(2))
        self.ln_f = Scale(width)
        self.lm_head = nn.Linear(width, VOCAB, bias=False)
        self.lm_head.weight = self.wte.weight
        half = torch.arange(0, width // heads, 2) / (width // heads)
        angles = torch.outer(torch.arange(limit).float(), 10000.0**-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits f32[B, T, V] of token ids i64[B, T]."""
        length = idx.size(1)
        table = (self.cos[:length], self.sin[:length])
        x = self.wte(idx)
        for block in self.h:
            x = block(x, table)
        return self.lm_head(self.ln_f(x))


class ParallelBlock(nn.Module):
    """Attention by einsum beside the feed-forward, both reading one norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        size = width // heads
        self.norm = nn.LayerNorm(width)
        self.wq = nn.Parameter(torch.empty(heads, width, size))
        self.wk = nn.Parameter(torch.empty(heads, width, size))
        self.wv = nn.Parameter(torch.empty(heads, width, size))
        self.wo = nn.Parameter(torch.empty(heads, size, width))
        up, down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.feed = nn.Sequential(up, nn.ReLU(), down)

    def attend(self, x: Tensor) -> Tensor:
        """Attention where heads are a dimension of the weights."""
        q, k, v = (torch.einsum("btd,hde->bhte", x, w) for w in (self.wq, self.wk, self.wv))
        scores = torch.einsum("bhqe,bhke->bhqk", q, k) * q.shape[-1] ** -0.5
        places = torch.arange(x.shape[1], device=x.device)
        blocked = torch.where(places[None, :] <= places[:, None], 0.0, -1e9)
        weights = (scores + blocked).softmax(-1)
        return torch.einsum("bhqk,bhke,hed->bqd", weights, v, self.wo)

    def forward(self, x: Tensor) -> Tensor:
        """One parallel block."""
        y = self.norm(x)
        return x + self.attend(y) + self.feed(y)


class ParallelDecoder(nn.Module):
    """Sinusoidal positions, parallel attention and feed-forward, einsum everywhere."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, width)
        self.layers = nn.ModuleList(ParallelBlock(width, heads) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Logits f32[B, T, V] of token ids i64[B, T], in a dict."""
        width = self.table.weight.shape[1]
        places = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
        rates = torch.exp(torch.arange(0, width, 2, device=tokens.device) * (-9.21 / width))
        angles = places[:, None] * rates[None, :]
        x = self.table(tokens) * math.sqrt(width) + torch.cat([angles.sin(), angles.cos()], dim=-1)
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(self.norm(x))}


def plain(name: str, make: Callable[[], nn.Module], argument: str) -> Entry:
    """An entry of one of the decoders above."""

    def example(batch: int, length: int) -> Inputs:
        return {argument: tokens(batch, length)}

    return Entry(name, lambda: randomize(make()), example, causal=True, needs_example=True)


PLAIN = [
    plain("plain_triangle", TriangleDecoder, "input_ids"),
    plain("plain_fused", FusedDecoder, "idx"),
    plain("plain_parallel", ParallelDecoder, "tokens"),
]

NAMED: dict[str, Entry] = {entry.name: entry for entry in [*hugging_face(), *PLAIN]}


# further families


def llama_like() -> list[Entry]:
    """Decoders whose config has Llama's names of sizes."""
    windowed = {"sliding_window": 5, "head_dim": 8}
    return [
        decoder("gemma2", **windowed),
        decoder("gemma3_text", **windowed),
        decoder("phi3", original_max_position_embeddings=LENGTH_LIMIT),
        decoder("stablelm"),
        decoder("starcoder2", sliding_window=5),
        decoder("olmo"),
        decoder("olmo2"),
        decoder("olmo3", sliding_window=5),
        decoder("cohere"),
        decoder("cohere2", sliding_window=5),
        decoder("granite", attention_multiplier=0.25, residual_multiplier=0.5, logits_scaling=2.0),
        decoder("nemotron"),
        decoder("glm", head_dim=8),
        decoder("glm4", head_dim=8),
        decoder("smollm3", no_rope_layers=[1, 0]),
        decoder("ministral", sliding_window=5, head_dim=8),
        decoder("helium", head_dim=8),
        decoder("arcee"),
        decoder("seed_oss", head_dim=8),
        decoder("exaone4", sliding_window=5),
        decoder("apertus"),
        decoder("persimmon"),
        decoder("diffllama"),
        decoder("nanochat"),
        decoder("bitnet"),
    ]


GPT_NEO = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 5,
    "max_position_embeddings": LENGTH_LIMIT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
XGLM = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "attention_heads": 4,
    "max_position_embeddings": LENGTH_LIMIT,
}


def gpt_like() -> list[Entry]:
    """Older decoders, each with names of sizes of its own."""
    return [
        exact("gptj", GPT2_LIKE | {"rotary_dim": 4}),
        exact("codegen", GPT2_LIKE | {"rotary_dim": 4}),
        exact("gpt_bigcode", GPT2_LIKE),
        exact("gpt_neo", GPT_NEO),
        exact(
            "mpt",
            {"vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
            example=masked_inputs,
        ),
        exact("ctrl", GPT2_LIKE | {"dff": 64}),
        exact(
            "falcon",
            without("intermediate_size", alibi=True, multi_query=False),
            example=masked_inputs,
            name="falcon_alibi",
        ),
        exact("xglm", XGLM),
        exact("biogpt", BERT_LIKE),
        exact("openai-gpt", GPT2_LIKE | {"afn": "gelu"}, example=masked_inputs),
    ]


LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}


def experts() -> list[Entry]:
    """Decoders whose feed-forward is a choice of experts."""
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return [
        decoder("qwen2_moe", shared_expert_intermediate_size=32, **sizes),
        decoder("qwen3_moe", head_dim=8, **sizes),
        decoder("olmoe", **sizes),
        decoder("phimoe", **EXPERTS),
        decoder("granitemoe", **EXPERTS),
        decoder("gpt_oss", head_dim=8, sliding_window=5, **EXPERTS),
        decoder("deepseek_v2", **LATENT),
        decoder("deepseek_v3", **LATENT),
        decoder("ernie4_5_moe", moe_num_experts=4, moe_k=2, **sizes),
        decoder("dots1", **{k: v for k, v in LATENT.items() if "rank" not in k and "qk" not in k}),
        decoder("minimax_m2", head_dim=8, rotary_dim=8, **EXPERTS),
        decoder("jetmoe", kv_channels=8, **EXPERTS),
        decoder("llama4_text", head_dim=8, intermediate_size_mlp=64, **EXPERTS),
        exact(
            "dbrx",
            {
                "vocab_size": VOCAB,
                "d_model": 32,
                "n_heads": 4,
                "n_layers": 2,
                "max_seq_len": LENGTH_LIMIT,
                "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
                "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
            },
        ),
    ]


def recurrences() -> list[Entry]:
    """Decoders that carry a state from token to token in some of their layers."""
    scan = {"state_size": 8, "time_step_rank": 4}
    return [
        exact("mamba", without("intermediate_size", **scan), example=plain_inputs),
        exact(
            "mamba2",
            without("intermediate_size", state_size=8, num_heads=8, head_dim=8, n_groups=1),
            example=masked_inputs,
        ),
        exact("falcon_mamba", without("intermediate_size", **scan), example=plain_inputs),
        exact(
            "rwkv", without("num_attention_heads", attention_hidden_size=32), example=plain_inputs
        ),
        decoder("recurrent_gemma", lru_width=32, attention_window_size=8, head_dim=8),
        decoder("lfm2", block_auto_adjust_ff_dim=False, full_attn_idxs=[1]),
        decoder(
            "qwen3_next",
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
            layer_types=["linear_attention", "full_attention"],
        ),
        decoder("jamba", num_experts=2, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8),
    ]


def encoders() -> list[Entry]:
    """Models that read tokens, pixels or both directions of a text."""
    images = without("vocab_size", "num_key_value_heads") | {"image_size": 16, "patch_size": 4}
    reads = {"auto": "AutoModel", "example": masked_inputs, "causal": False}
    sees = {"auto": "AutoModel", "example": image_inputs, "causal": False}
    return [
        exact("roberta", BERT_LIKE | {"max_position_embeddings": 130}, **reads),
        exact(
            "distilbert",
            {
                "vocab_size": VOCAB,
                "dim": 32,
                "hidden_dim": 64,
                "n_layers": 2,
                "n_heads": 4,
                "max_position_embeddings": LENGTH_LIMIT,
            },
            **reads,
        ),
        exact("albert", BERT_LIKE | {"embedding_size": 16}, **reads),
        exact("electra", BERT_LIKE | {"embedding_size": 16}, **reads),
        exact(
            "deberta",
            BERT_LIKE | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
            **reads,
        ),
        exact(
            "deberta-v2",
            BERT_LIKE | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
            **reads,
        ),
        exact("mpnet", BERT_LIKE, **reads),
        exact("modernbert", BERT_LIKE | {"local_attention": 6}, **reads),
        exact("deit", images, **sees),
        exact("dinov2", images, **sees),
        exact("beit", images, **sees),
        exact("siglip_vision_model", images, **sees),
        exact("clip_vision_model", images, **sees),
    ]


BART = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": LENGTH_LIMIT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}


def pairs() -> list[Entry]:
    """An encoder with a decoder beside it."""
    both = {"auto": "AutoModelForSeq2SeqLM", "example": pair_inputs, "causal": False}
    return [
        exact("t5", T5, **both),
        exact("mt5", T5, **both),
        exact("bart", BART, **both),
        exact("mbart", BART, **both),
        exact("pegasus", BART, **both),
        exact("marian", BART, **both),
        exact("m2m_100", BART, **both),
        exact("blenderbot", BART, **both),
        exact(
            "whisper",
            BART | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64},
            auto="AutoModelForSpeechSeq2Seq",
            example=audio_inputs,
            causal=False,
        ),
    ]


def audio_inputs(batch: int, length: int) -> Inputs:
    """Mel features f32[batch, 8, 20] and the tokens of a decoder."""
    generator = torch.Generator().manual_seed(batch)
    features = torch.randn(batch, 8, 20, generator=generator)
    return {"input_features": features, "decoder_input_ids": tokens(batch, length)}


def further() -> list[Entry]:
    """Families of transformers beyond the promised ones."""
    decoders = [*llama_like(), *gpt_like(), *experts(), *recurrences()]
    return [*decoders, *encoders(), *pairs()]


OTHERS: dict[str, Entry] = {entry.name: entry for entry in further()}
