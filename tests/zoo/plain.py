"""Plain decoders in three styles: attention by matmul, by one fused call, and by einsum.

They share nothing with transformers, and each names its parts and spells its positions in a way of
its own.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.zoo.making import LENGTH_LIMIT, VOCAB, Entry, Inputs, randomize, tokens


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
