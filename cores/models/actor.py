"""The policy: log-probs of response tokens under a causal language model.

Shapes: B rows, L = P + T tokens a row (prompt then response), V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from cores.models.vocabulary import EXCLUDED_LOGIT


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


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    stop_ids: Sequence[int] = (),
    min_new_tokens: int = 0,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs of `ids` (B, T) and entropy (B, T), in nats, from logits (B, T, V).

    The distribution is softmax(logits / temperature), in the first `min_new_tokens` positions
    without `stop_ids`; logits[:, t] predicts ids[:, t]. The entropy carries a gradient only with
    `entropy_grad`: it keeps two tensors of the logits' size for the backward pass.
    """
    scaled = logits.float() / temperature
    if min_new_tokens:  # in place: the backward pass of a division by a number needs no output
        scaled[:, :min_new_tokens, list(stop_ids)] = EXCLUDED_LOGIT / temperature
    normalizer = scaled.logsumexp(dim=-1)
    chosen = scaled.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    with torch.set_grad_enabled(entropy_grad):
        probs = (scaled - normalizer.unsqueeze(-1)).exp()
        entropy = normalizer - (probs * scaled).sum(dim=-1)
    return chosen - normalizer, entropy


class Actor(nn.Module):
    """A causal language model seen as a policy over response tokens.

    In the first `min_new_tokens` tokens of a response `stop_ids` have probability 0, as in the
    sampling.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        temperature: float,
        stop_ids: Sequence[int] = (),
        min_new_tokens: int = 0,
        entropy_grad: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.stop_ids = stop_ids
        self.min_new_tokens = min_new_tokens
        self.entropy_grad = entropy_grad

    def forward(
        self, ids: Tensor, mask: Tensor, response_length: int, plain: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropy (B, T) of the last `response_length` of ids (B, L), mask (B, L).

        Responses begin at the same column in every row (prompts are padded on the left), so column
        t is response token t. `plain`: the language model's own distribution, for texts that were
        not sampled: temperature 1, stop ids anywhere, entropy without a gradient.
        """
        inputs = model_inputs(plain_model(self.model), ids, mask)
        output = self.model(**inputs, logits_to_keep=response_length + 1, use_cache=False)
        logits = output.logits[:, -response_length - 1 : -1]
        chosen = ids[:, -response_length:]
        if plain:
            return token_logprobs(logits, chosen, temperature=1.0)
        return token_logprobs(
            logits,
            chosen,
            self.temperature,
            self.stop_ids,
            self.min_new_tokens,
            self.entropy_grad,
        )
