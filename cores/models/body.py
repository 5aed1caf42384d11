"""The body of a language model: hidden states of rows, padded or not; whose attention is plain,
which our own decode step and captured passes rely on.

Shapes: B rows of L columns, d width of the model.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, masking_utils

from cores.models.vocabulary import architecture

FAMILIES = ("gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose attention is causal, over all positions, with scores neither capped nor biased,
and whose keys and values go to the cache and the attention function and nowhere else."""
STILL_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles do not depend on the longest row so far."""


def position_ids(mask: Tensor) -> Tensor:
    """(B, L) positions counted from each row's first attended token; 0 in padding before it."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def causal_mask(mask: Tensor) -> Tensor:
    """(B, 1, L, L) bool of mask (B, L): each position attends to the tokens up to itself.

    Padding before the first token attends to itself, so that its softmax is defined; nothing
    attends to padding.
    """
    length = mask.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    seen = before & mask[:, None, :].bool()
    return (seen | (itself & ~seen.any(dim=2, keepdim=True)))[:, None]


def hidden_states(body: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Last hidden states (B, L, d) of ids (B, L) under mask (B, L); None: nothing is padding.

    Then attention is plain causal, and positions are columns, by the model's own defaults, without
    transformers' looks into ids, positions and OPT's own mask for padding and packed rows, of which
    it is known that there are none: on a GPU each look waits for everything asked of it before, and
    cannot be part of a CUDA graph. Nor is a mask made where a graph is captured, as transformers
    would (5.17) in any tracing: the attention would be slower, and compiled layers not the ones
    that were compiled.
    """
    if mask is not None:
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        if "position_ids" in inspect.signature(body.forward).parameters:  # ALiBi takes none
            inputs["position_ids"] = position_ids(mask)
        if attention_problem(body.config) is None:
            # transformers takes it as it is. Of a mask (B, L) it would ask whether there is any
            # padding at all, and a GPU would be waited for.
            inputs["attention_mask"] = causal_mask(mask)
        return body(**inputs, use_cache=False).last_hidden_state
    answers: dict[str, Any] = {
        "find_packed_sequence_indices": lambda position_ids: None,
        "fast_all": lambda mask: True,
        "is_tracing": lambda tensor=None: False,
    }
    found = {name: getattr(masking_utils, name) for name in answers}
    vars(masking_utils).update(answers)
    vars(body)["warn_if_padding_and_no_attention_mask"] = lambda *args: None
    try:
        return body(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        vars(masking_utils).update(found)
        del vars(body)["warn_if_padding_and_no_attention_mask"]


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
