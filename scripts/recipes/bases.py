"""Tiny random bases: the architecture and the tokenizer's habits of a system, two layers of 32.

Each takes an empty folder and fills it as `save_pretrained` does.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    CodeGenConfig,
    CohereConfig,
    GlmConfig,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.utils.logging import disable_progress_bar

from scripts.recipes.vocabularies import byte_fallback, byte_level, wrapped

POSITIONS = 4096
"""As many as the longest rows of the recipes."""
END = "<|endoftext|>"
NARROW: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = ["<eoh>", "<eot>", "<eoc>", "<eor>", "<eom>"]
"""MOSS's special tokens; its `<|Human|>`, `<|Results|>` and their like are text."""


def llama(out: Path) -> None:
    """LLaMA: `<s>` before each text, bytes for characters it does not know, no pad."""
    tokenizer = wrapped(
        byte_fallback(["<unk>", "<s>", "</s>"]),
        before="<s>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    config = LlamaConfig(
        **NARROW, intermediate_size=64, num_key_value_heads=4, max_position_embeddings=POSITIONS
    )
    save(config, tokenizer, out)


def opt(out: Path) -> None:
    """OPT: `</s>` is end and beginning, and put before each text."""
    tokenizer = wrapped(
        byte_level(["<s>", "<pad>", "</s>", "<unk>"]),
        before="</s>", bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>",
    )  # fmt: skip
    config = OPTConfig(
        **NARROW, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    save(config, tokenizer, out)


def bloom(out: Path) -> None:
    """BLOOM: nothing before a text, a pad of its own."""
    tokenizer = wrapped(
        byte_level(["<unk>", "<s>", "</s>", "<pad>"]),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip
    save(BloomConfig(hidden_size=32, n_layer=2, n_head=4), tokenizer, out)


def neox(out: Path) -> None:
    """GPT-NeoX (Pythia, RedPajama-INCITE): nothing before a text, no pad."""
    config = GPTNeoXConfig(**NARROW, intermediate_size=64, max_position_embeddings=POSITIONS)
    save(config, _gpt([END]), out)


def gptj(out: Path) -> None:
    """GPT-J (GPT-JT): nothing before a text, no pad."""
    config = GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=POSITIONS)
    save(config, _gpt([END]), out)


def moss(out: Path) -> None:
    """CodeGen with MOSS's tokens; its end of a text is not the end of a message."""
    config = CodeGenConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=POSITIONS)
    save(config, _gpt([END, *ENDS]), out)


def t5(out: Path) -> None:
    """T5: `</s>` behind each text, nothing before, pad is the start of a reply."""
    tokenizer = wrapped(
        byte_fallback(["<pad>", "</s>", "<unk>"]),
        after="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    version_1_1: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    config = T5Config(**sizes, **version_1_1)
    config.decoder_start_token_id = tokenizer.pad_token_id
    save(config, tokenizer, out)


def glm(out: Path) -> None:
    """GLM with ChatGLM's `[gMASK]`, `<sop>` and `<eop>`, none of which it puts by itself."""
    tokenizer = wrapped(
        byte_fallback(["<unk>", "<s>", "</s>", "<pad>", "[gMASK]", "<sop>", "<eop>"]),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens=["[gMASK]", "<sop>", "<eop>"],
    )  # fmt: skip
    config = GlmConfig(
        **NARROW, intermediate_size=64, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=POSITIONS,
    )  # fmt: skip
    save(config, tokenizer, out)


def palm(out: Path) -> None:
    """PaLM's shape in Cohere's class, over bytes: parallel layers, one key-value head, tied
    embeddings. A configuration without weights, as the original begins from nothing."""
    tokenizer = wrapped(byte_level(["<pad>", END], merges=False), eos_token=END, pad_token="<pad>")
    config = CohereConfig(
        **NARROW, intermediate_size=128, num_key_value_heads=1, max_position_embeddings=POSITIONS,
        logit_scale=1.0, use_qk_norm=False, tie_word_embeddings=True,
    )  # fmt: skip
    save(config, tokenizer, out, weights=False)


def image_base(name: str) -> Callable[[Path], None]:
    """The maker of a base that reads images, which needs Pillow when it is called."""

    def make_with_images(out: Path) -> None:
        getattr(import_module("scripts.recipes.bases_images"), name)(out)

    return make_with_images


BASES: dict[str, Callable[[Path], None]] = {
    "llama": llama,
    "opt": opt,
    "bloom": bloom,
    "neox": neox,
    "gptj": gptj,
    "moss": moss,
    "t5": t5,
    "glm": glm,
    "palm": palm,
    "llava": image_base("llava"),
    "blip2": image_base("blip2"),
    "idefics": image_base("idefics"),
}
"""Maker by name, as scripts/recipes/table.py names them."""


def make(base: str, out: Path) -> None:
    """The base `base` in the folder `out`, the same at every call."""
    disable_progress_bar()
    torch.manual_seed(0)
    BASES[base](out)


def save(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, out: Path, weights: bool = True
) -> None:
    """Write configuration, tokenizer and, if `weights`, random weights into `out`."""
    config.vocab_size = len(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    tokenizer.model_max_length = POSITIONS
    tokenizer.save_pretrained(out)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config)
    if weights:
        model.save_pretrained(out)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(out)


def _gpt(special: list[str]) -> PreTrainedTokenizerFast:
    return wrapped(byte_level(special), bos_token=END, eos_token=END, unk_token=END)
