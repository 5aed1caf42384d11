"""Shapes of models, without their weights."""

from transformers import GPT2Config, LlamaConfig, OPTConfig, PretrainedConfig, Qwen2Config

Shapes = dict[str, PretrainedConfig]
SHAPES: Shapes = {
    "tiny": GPT2Config(
        vocab_size=2048,
        n_layer=4,
        n_embd=128,
        n_head=2,  # of 64, as GPT-2's
        bos_token_id=2047,
        eos_token_id=2047,
    ),
    "gpt2": GPT2Config(),
    "opt-350m": OPTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        ffn_dim=4096,
        word_embed_proj_dim=512,
        do_layer_norm_before=False,
    ),
    "opt-1.3b": OPTConfig(
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=32,
        ffn_dim=8192,
        word_embed_proj_dim=2048,
    ),
    "llama-7b": LlamaConfig(max_position_embeddings=4096),
    "qwen2.5-0.5b": Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "llama-3b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
}
"""GPT2Config and LlamaConfig are GPT-2 124M and Llama 7B by default; the other numbers are those of
facebook/opt-350m, facebook/opt-1.3b, Qwen/Qwen2.5-0.5B and 1.5B, HuggingFaceTB/SmolLM2-135M and
meta-llama/Llama-3.2-3B."""
