"""Models of a config.json, and a stage's run on GPUs, for the tests of plans."""

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from cores.config import parse_config
from cores.memory import Case, Layout, Phases, total
from cores.shapes import Texts, shape_from
from scripts.plan.times import card_of

NUMBERS: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip
GROUPS = {**NUMBERS, "num_key_value_heads": 2}
BASES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 96},
    "opt": {**NUMBERS, "ffn_dim": 160, "word_embed_proj_dim": 32, "max_position_embeddings": 96},
    "gpt_neox": NUMBERS,
    "bloom": {"vocab_size": 320, "hidden_size": 64, "n_layer": 3, "n_head": 4},
    "llama": GROUPS,
    "mistral": {**GROUPS, "sliding_window": None},
    "qwen2": {**GROUPS, "tie_word_embeddings": True},
    "qwen3": {**GROUPS, "head_dim": 16},
    "gemma": {**GROUPS, "head_dim": 16},
}
SEVEN = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000,
    "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip
H100 = card_of(80)


def numbers_of(family: str) -> dict[str, Any]:
    """What a config.json of the family holds."""
    return AutoConfig.for_model(family, **BASES[family]).to_dict()


def made(family: str, auto: Any = AutoModelForCausalLM, **more: Any) -> Any:
    """A random model."""
    config = AutoConfig.for_model(family, **BASES[family], **more)
    return auto.from_config(config)


def case_of(*words: str, numbers: Any = None, layout: Layout | None = None) -> Case:
    """Of a 7B Llama in every role, or other numbers."""
    config = parse_config(list(words), "", "")
    shape = shape_from(numbers or SEVEN, "config.json")
    ppo = config.ppo
    texts = Texts(ppo.max_prompt_length, ppo.max_new_tokens, ppo.max_new_tokens)
    return Case(config, shape, shape, layout or Layout(), texts)


def held(phases: Phases, role: str, what: str) -> float:
    """Bytes in any phase."""
    return max(total([h for h in p if (h.role, h.what) == (role, what)]) for p in phases.values())
