"""Architectures whose attention is plain, which our own decode step and captured passes rely on."""

from typing import Any

from transformers import PretrainedConfig

from cores.models.vocabulary import architecture

FAMILIES = ("gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose attention is causal, over all positions, with scores neither capped nor biased,
and whose keys and values go to the cache and the attention function and nowhere else."""
STILL_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles do not depend on the longest row so far."""


def attention_problem(config: PretrainedConfig) -> str | None:
    """What keeps an architecture's attention from being plain, if anything."""
    name = architecture(config)
    if config.model_type not in FAMILIES:
        return f"{name} is none of the model types {', '.join(FAMILIES)}"
    if getattr(config, "sliding_window", None):
        return f"{name} attends to a sliding window"
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in STILL_ROPE:
        return f"the rotary embedding of {name} is {kind}, which changes with the length"
    return None


def looks_for_outliers(model: Any) -> bool:
    """Whether layers in 8 bits ask in every forward pass which inputs are large (bitsandbytes):
    the device is waited for, which a captured graph cannot."""
    return any(hasattr(module, "init_8bit_state") for module in model.modules())
