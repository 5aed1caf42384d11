"""Shapes of the model families, two layers of width 32 each, and what is odd about them.

Learned positions: GPT-2; OPT, whose table begins with two rows that no position uses. Rotary: NeoX
(attention and MLP in parallel), GPT-J (a bias in the head), Llama (grouped keys), Qwen 2 (biases
in q, k, v; tied) and Qwen 3 (norms on q and k; tied). ALiBi: BLOOM, with a norm on its embeddings.
Gemma 2 caps its logits behind the head and slides every other window. Dropout is on in all.

Without a classification class in transformers: CodeGen (MOSS; attention and MLP in parallel, q, k
and v in one), Cohere (in parallel too, one key-value head, logits scaled) and Granite (embeddings,
residuals and logits scaled).
"""

from typing import Any

from transformers import (
    BloomConfig,
    CodeGenConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

FAMILIES = tuple("gpt2 opt opt_projected bloom gpt_neox gptj llama qwen2 qwen3 gemma2".split())
"""opt_projected: embeddings narrower than the layers, as in OPT-350m."""
BUILT = ("codegen", "cohere", "granite")
"""Families whose classification class is ours."""
SIDED = "t5"
"""The family whose prompts an encoder reads."""
PACKABLE = tuple(f for f in FAMILIES if f not in ("opt", "opt_projected", "bloom"))
"""Families that hold packed rows apart in transformers 5.17 to 5.23."""
POSITIONS = 128

_NARROW: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA: dict[str, Any] = {
    **_NARROW,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "attention_dropout": 0.1,
    "tie_word_embeddings": False,
}
_OPT: dict[str, Any] = {
    **_NARROW,
    "ffn_dim": 48,
    "max_position_embeddings": POSITIONS,
    "attention_dropout": 0.1,
    "word_embed_proj_dim": 32,
}
_SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}),
    "opt": (OPTConfig, {**_OPT, "layerdrop": 0.5}),
    "opt_projected": (
        OPTConfig,
        {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "t5": (
        T5Config,
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
         "dropout_rate": 0.1, "decoder_start_token_id": 0},
    ),
    "bloom": (
        BloomConfig,
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.1,
         "attention_dropout": 0.1},
    ),
    "gpt_neox": (
        GPTNeoXConfig,
        {**_NARROW, "intermediate_size": 48, "max_position_embeddings": POSITIONS,
         "hidden_dropout": 0.1, "attention_dropout": 0.1},
    ),
    "gptj": (
        GPTJConfig,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": POSITIONS,
         "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    ),
    "llama": (LlamaConfig, _LLAMA),
    "mistral": (MistralConfig, {**_LLAMA, "sliding_window": None}),
    "qwen2": (Qwen2Config, {**_LLAMA, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {**_LLAMA, "tie_word_embeddings": True, "head_dim": 8}),
    "gemma2": (
        Gemma2Config,
        {**_LLAMA, "tie_word_embeddings": True, "head_dim": 8, "query_pre_attn_scalar": 8,
         "sliding_window": 4},
    ),
    "codegen": (
        CodeGenConfig,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": POSITIONS,
         "n_ctx": POSITIONS, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    ),
    "cohere": (
        CohereConfig,
        {**_LLAMA, "num_key_value_heads": 1, "logit_scale": 0.25, "tie_word_embeddings": True},
    ),
    "granite": (
        GraniteConfig,
        {**_LLAMA, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 0.5},
    ),
}  # fmt: skip


def family_config(kind: str, **changes: Any) -> PretrainedConfig:
    """A configuration of the family `kind`, with `changes`."""
    cls, sizes = _SHAPES[kind]
    return cls(**{**sizes, **changes})
