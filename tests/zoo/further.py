"""Further families of transformers, so that what holds for the named ones is not made for them."""

from tests.zoo.making import (
    BERT_LIKE,
    EXPERTS,
    GPT2_LIKE,
    LENGTH_LIMIT,
    VOCAB,
    Entry,
    audio_inputs,
    decoder,
    exact,
    image_inputs,
    masked_inputs,
    pair_inputs,
    plain_inputs,
    without,
)


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
        decoder("ernie4_5"),
        decoder("cwm", sliding_window=5, head_dim=8),
        decoder("hunyuan_v1_dense", head_dim=8),
        decoder("jais2"),
        decoder("internlm3", head_dim=8),
        decoder("vaultgemma", sliding_window=5, head_dim=8),
    ]


def unlike_llama() -> list[Entry]:
    """Decoders with Llama's names of sizes and a layer of their own making."""
    return [
        decoder("gemma4_text", head_dim=8, sliding_window=5, **PER_LAYER),
        decoder("gemma3n_text", **PER_LAYER, **GEMMA3N),
        decoder("minicpm3", **{k: v for k, v in LATENT.items() if k in ATTENTION_OF_LATENTS}),
        decoder("modernbert-decoder", local_attention=6),
        decoder("hrm_text", head_dim=8),
        decoder("doge", num_experts=4, sliding_window=5),
        decoder("granite_swa", sliding_window=5),
    ]


PER_LAYER = {
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
}


GEMMA3N = {
    "head_dim": 8,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
    "activation_sparsity_pattern": [0.0, 0.0],
    "laurel_rank": 4,
    "altup_num_inputs": 2,
}
ATTENTION_OF_LATENTS = (
    *("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
    "num_key_value_heads",
)

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
        *(as_decoder(name) for name in ("bert", "roformer", "megatron-bert", "big_bird")),
        exact("roberta", BERT_LIKE | ROBERTA, name="roberta_decoder"),
        exact("bert-generation", BERT_LIKE | {"is_decoder": True}, example=masked_inputs),
        exact("gpt_neox_japanese", without("num_key_value_heads"), example=masked_inputs),
    ]


ROBERTA = {"is_decoder": True, "max_position_embeddings": 130}


def as_decoder(family: str) -> Entry:
    """An encoder's family as a decoder, which it may be too."""
    options = BERT_LIKE | {"is_decoder": True}
    return exact(family, options, example=masked_inputs, name=f"{family}_decoder")


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
    groups = {"n_group": 1, "topk_group": 1, "head_dim": 8}
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
        decoder("hunyuan_v1_moe", head_dim=8, num_experts=4, moe_topk=2),
        decoder("flex_olmo", **sizes),
        decoder("minimax_m2", head_dim=8, rotary_dim=8, **EXPERTS),
        decoder("glm4_moe", n_routed_experts=4, n_shared_experts=1, **groups, **sizes),
        decoder("exaone_moe", num_shared_experts=1, sliding_window=5, **groups, **sizes),
        decoder("afmoe", num_shared_experts=1, sliding_window=5, **groups, **sizes),
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


def hybrids() -> list[Entry]:
    """Decoders with attention in some layers, and in others a state that is read in chunks."""
    return [
        decoder("bamba", attn_layer_indices=[1], **MAMBA2),
        decoder(
            "granitemoehybrid",
            layer_types=["mamba", "attention"],
            shared_intermediate_size=32,
            **EXPERTS,
            **MAMBA2,
        ),
        decoder("falcon_h1", mamba_d_ssm=64, **MAMBA2),
        decoder(
            "nemotron_h",
            layers_block_type=["mamba", "attention"],
            mamba_num_heads=8,
            mamba_head_dim=8,
            ssm_state_size=8,
            n_groups=1,
            head_dim=8,
        ),
        decoder(
            "minimax",
            head_dim=8,
            block_size=4,
            layer_types=["linear_attention", "full_attention"],
            **EXPERTS,
        ),
    ]


MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}


DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": 32,
    "hidden_dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": LENGTH_LIMIT,
}


def encoders() -> list[Entry]:
    """Models that read tokens, pixels or both directions of a text."""
    images = without("vocab_size", "num_key_value_heads") | {"image_size": 16, "patch_size": 4}
    reads = {"auto": "AutoModel", "example": masked_inputs, "causal": False}
    sees = {"auto": "AutoModel", "example": image_inputs, "causal": False}
    return [
        exact("roberta", BERT_LIKE | {"max_position_embeddings": 130}, **reads),
        exact("distilbert", DISTILBERT, **reads),
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
        exact("fnet", BERT_LIKE, auto="AutoModel", example=plain_inputs, causal=False),
        exact("esm", BERT_LIKE | {"mask_token_id": 3}, **reads),
        exact("convbert", BERT_LIKE | {"embedding_size": 32, "conv_kernel_size": 3}, **reads),
        exact("yoso", BERT_LIKE, **reads),
        exact("deit", images, **sees),
        exact("dinov2", images, **sees),
        exact("beit", images, **sees),
        exact("siglip_vision_model", images, **sees),
        exact("clip_vision_model", images, **sees),
        exact("swin", SWIN, **sees),
        exact("swinv2", SWIN, **sees),
        exact("convnext", STAGES | {"num_stages": 2}, **sees),
    ]


STAGES = {"image_size": 16, "patch_size": 2, "hidden_sizes": [16, 32], "depths": [2, 2]}
SWIN = STAGES | {"embed_dim": 16, "window_size": 4, "num_heads": [2, 2]}
del SWIN["hidden_sizes"]

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
LANGUAGES = {"src_vocab_size": VOCAB, "tgt_vocab_size": VOCAB, "langs": ["en", "de"]}


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
        exact("plbart", BART, **both),
        exact("umt5", T5, **both),
        exact("mvp", BART, **both),
        exact("bigbird_pegasus", BART | {"attention_type": "original_full"}, **both),
        exact("switch_transformers", T5 | {"num_experts": 4}, **both),
        exact("fsmt", BART | LANGUAGES, **both),
        exact(
            "whisper",
            BART | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64},
            auto="AutoModelForSpeechSeq2Seq",
            example=audio_inputs,
            causal=False,
        ),
    ]


def further() -> list[Entry]:
    """Families of transformers beyond the promised ones."""
    decoders = [*llama_like(), *unlike_llama(), *gpt_like(), *experts()]
    return [*decoders, *recurrences(), *hybrids(), *encoders(), *pairs()]


OTHERS: dict[str, Entry] = {entry.name: entry for entry in further()}
