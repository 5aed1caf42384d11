"""Frozen weights in bfloat16 where that changes no number."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

SCALAR_HEAD = "score"
"""Head of a classification model: it computes in fp32, outside autocast, and may be trained."""


def hold_linears_in_bf16(model: Any) -> Any:
    """`model` (never to be trained itself; adapters may be) with its linear weights in bfloat16.

    Under bfloat16 autocast linear layers (nn.Linear, GPT-2's Conv1D) round their weights so at each
    use, so outputs stay the same bit for bit, for about half the memory. Everything else stays as
    it is: biases, embeddings, norms, the scalar head. A head tied to the embeddings gets a weight
    of its own. Outside autocast the model does not run any more.
    """
    for name, module in model.named_modules():
        linear = isinstance(module, (nn.Linear, Conv1D)) and name.split(".")[-1] != SCALAR_HEAD
        if linear and module.weight.dtype == torch.float32:
            weight = module.weight.detach().to(torch.bfloat16)
            module.weight = nn.Parameter(weight, requires_grad=False)
    return model
