"""The model that sampling runs: the trainer's own modules and weights, in a copy of their shell."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cores.models.actor import head_logits
from cores.rollout.graph.buffers import ATTENTION


class Twin:
    """A copy of `model` that shares its parameters and reads keys and values from a static cache.

    With `autocast` the fp32 weights of linear layers have a bfloat16 copy here, rounded by
    `refresh` once a rollout as autocast would round them at every use; everything else, frozen
    weights in other types included, is the trainer's own tensor.
    """

    def __init__(self, model: Any, autocast: bool) -> None:
        shared = {id(p): p for p in model.parameters()}  # by id as `deepcopy` asks for it
        for module in model.modules():
            if hasattr(module, "init_8bit_state"):  # there the weight moves to at its first use
                shared[id(module.state)] = module.state
        self.model: Any = deepcopy(model, shared)
        self.model.eval()
        self.model.config._attn_implementation = ATTENTION
        self.sources: list[Tensor] = []
        self.copies: list[Tensor] = []
        if autocast:
            for module in self.model.modules():
                if isinstance(module, nn.Linear | Conv1D):
                    self._round(module)

    def _round(self, module: nn.Module) -> None:
        for name in ("weight", "bias"):
            source = getattr(module, name)
            if source is None or source.dtype != torch.float32:
                continue
            copy = torch.empty_like(source, dtype=torch.bfloat16, requires_grad=False)
            setattr(module, name, nn.Parameter(copy, requires_grad=False))
            self.sources.append(source)
            self.copies.append(getattr(module, name))

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the weights as they are now."""
        for copy in self.copies:
            if not copy.untyped_storage().nbytes():  # else a resize would move what graphs read
                copy.untyped_storage().resize_(copy.nbytes)
        if self.copies:
            torch._foreach_copy_(self.copies, self.sources)

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(copy.nbytes for copy in self.copies)

    def release(self) -> None:
        """Give the memory of the copies back until the next `refresh`."""
        for copy in self.copies:
            copy.untyped_storage().resize_(0)

    def __call__(self, ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits (b, V) behind the last of ids (b, T) at positions (b, T), or (1, T) of all."""
        states = self.model.base_model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        # Contiguous rows: the last column of (b, T, d) would be multiplied row by row.
        return head_logits(self.model, states[:, -1].contiguous())
