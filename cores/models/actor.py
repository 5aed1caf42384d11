"""The policy: log-probs of response tokens under a causal language model.

Shapes: B rows, L = P + T tokens a row (prompt then response), V vocabulary.
"""

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel


def plain_model(model: Any) -> Any:
    """The Hugging Face model itself, its adapters active, where peft wraps it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def position_ids(mask: Tensor) -> Tensor:
    """(B, L) positions counted from each row's first attended token; 0 in padding before it."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def model_inputs(model: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Arguments of a Hugging Face model; position ids where it takes them (ALiBi does not)."""
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = position_ids(mask)
    return inputs


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs of `ids` (B, T) and entropy (B, T), in nats, from logits (B, T, V).

    The distribution is softmax(logits / temperature);
    logits[:, t] predicts ids[:, t]. The entropy carries no gradient.
    """
    scaled = logits.float() / temperature
    normalizer = scaled.logsumexp(dim=-1)
    chosen = scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        probs = (scaled - normalizer.unsqueeze(-1)).exp()
        entropy = normalizer - (probs * scaled).sum(dim=-1)
    return chosen - normalizer, entropy


class Actor(nn.Module):
    """A causal language model seen as a policy over response tokens."""

    def __init__(self, model: PreTrainedModel | PeftModel, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, ids: Tensor, mask: Tensor, response_length: int) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy (B, T) of the last `response_length` of ids (B, L), mask (B, L)."""
        inputs = model_inputs(plain_model(self.model), ids, mask)
        output = self.model(**inputs, logits_to_keep=response_length + 1, use_cache=False)
        logits = output.logits[:, -response_length - 1 : -1]
        return token_logprobs(logits, ids[:, -response_length:], self.temperature)
