"""The families that elidir promises to capture and raise, plain decoders among them."""

from tests.zoo.making import (
    BERT_LIKE,
    EXPERTS,
    GPT2_LIKE,
    VOCAB,
    Entry,
    decoder,
    exact,
    image_inputs,
    masked_inputs,
    without,
)
from tests.zoo.plain import PLAIN


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


NAMED: dict[str, Entry] = {entry.name: entry for entry in [*hugging_face(), *PLAIN]}
