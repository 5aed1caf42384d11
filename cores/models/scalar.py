"""One scalar head for reward model and critic, over a stock sequence-classification model."""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from cores.models.actor import plain_model
from cores.models.body import hidden_states


class ScalarModel(nn.Module):
    """A stock `AutoModelForSequenceClassification` with one label, read at every token.

    The number at a token is the stock logit there minus `reward_mean` of the model's config, so
    that the score of a row is what any other tool computes from the saved folder, less that
    constant.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model
        self.mean = float(getattr(model.config, "reward_mean", 0.0))

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Values (B, L) of ids (B, L) under mask (B, L), in float32; None: nothing is padding."""
        inner: Any = plain_model(self.model)
        hidden = hidden_states(inner.base_model, ids, mask)
        # In fp32 whatever the autocast: bf16 has 8 bits, and scores that close would tie.
        with torch.autocast(hidden.device.type, enabled=False):
            return inner.score(hidden.float()).squeeze(-1) - self.mean

    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Values at the last attended token of each row, (B,)."""
        return last_attended(self(ids, mask), mask)


@torch.no_grad()
def rescale(model: Any, mean: float, std: float) -> None:
    """Make scores of the stock `model` with this mean and deviation have 0 and 1: 1/std goes into
    the head, and what is then left of the mean into `config.reward_mean`.

    So score = stock logit - reward_mean, in this code and in any other.
    """
    for parameter in model.score.parameters():
        parameter.mul_(1.0 / std)
    before = float(getattr(model.config, "reward_mean", 0.0))
    model.config.reward_mean = (before + mean) * (1.0 / std)


def last_attended(values: Tensor, mask: Tensor) -> Tensor:
    """The entry of values (B, L) at the last True of mask (B, L), (B,)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).argmax(dim=1)
    return values.gather(1, last.unsqueeze(1)).squeeze(1)
