"""Heads of reward models that no stock class has: two layers, and ratings in bins.

Shapes: d width of the model, K numbers that the head gives.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

LAYERS = "reward_head_layers"
"""In config.json of a model with another head than the stock one."""


def expected_rating(logits: Tensor) -> Tensor:
    """The mean of the ratings 1 .. K under softmax(logits), (...) of logits (..., K)."""
    ratings = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
    return (logits.softmax(dim=-1) * ratings).sum(dim=-1)


def class_of(auto: Any, config: PretrainedConfig) -> Any:
    """What loads a model of `config`: `auto`, or its class with the head that the config tells."""
    if getattr(config, LAYERS, 1) == 1:
        return auto
    return two_layered(auto._model_mapping[type(config)])


@cache
def two_layered(stock: type) -> type:
    """The classification class `stock` with linear, ReLU, linear in the place of its head."""

    def init(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)  # type: ignore[misc]
        width = self.score.in_features
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), self.score)
        self.post_init()

    return type(stock.__name__, (stock,), {"__init__": init, "__module__": stock.__module__})


def linears(model: Any) -> list[nn.Linear]:
    """The linear layers of a model's head, the first one first."""
    return [module for module in model.score.modules() if isinstance(module, nn.Linear)]


def scale_head(model: Any, factor: float) -> None:
    """Multiply what the head gives: its last layer, also where peft keeps a copy."""
    for name, parameter in model.score.named_parameters():
        if ".0." not in f".{name}":  # the first of two
            parameter.mul_(factor)
