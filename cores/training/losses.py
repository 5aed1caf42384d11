"""Stage 1 with a loss for each of several sources, added by weights in every step."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cores.config import Config
from cores.training.lasting import Lasting

IGNORED = -100
PART = "part"
"""Of a row: the number of its source, where sources have losses of their own."""


def loss_weights(config: Config) -> list[float]:
    """Of the sources of stage 1, in their order; empty where all tokens have one mean."""
    weights = [source.loss_weight for source in config.data.sft.sources]
    return [weight for weight in weights if weight is not None]


def row_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (B,), nats, summed over each row's trained tokens: logits (B, T, V) are of the
    labels (B, T) at the same place."""
    losses = cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(dim=-1)


class WeightedLosses(Lasting):
    """The loss of a step is the sum over sources of a source's weight times the mean over its
    trained tokens in that step, on all ranks (Awadalla et al. 2023 add those of two batches). A
    source without a row in a step adds nothing.
    """

    def __init__(self, *args: Any, weights: list[float], shifted: bool, **kwargs: Any) -> None:
        """shifted: a token is predicted at the place before it, as in models without an encoder."""
        super().__init__(*args, **kwargs)
        self.weights, self.shifted = torch.tensor(weights), shifted

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step; notes the trained tokens of each source in them
        on all ranks. No count of all goes on: the loss is whole when `compute_loss` is done."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = torch.zeros(len(self.weights), device=device)
        for sample in samples:
            counts = (sample["labels"] != IGNORED).sum(dim=-1).to(own)
            own.index_add_(0, sample[PART].to(device), counts)
        self.trained = self.accelerator.gather(own[None]).sum(dim=0).clamp(min=1)
        return samples, None

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """A micro-batch's share, times the number of micro-batches on all ranks, which the trainer
        divides by."""
        own = {name: tensor for name, tensor in inputs.items() if name not in ("labels", PART)}
        logits, labels = model(**own, use_cache=False).logits, inputs["labels"]
        if self.shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        share = self.weights.to(logits.device) / self.trained.to(logits.device)
        losses = row_sums(logits, labels) * share[inputs[PART]]
        return losses.sum() * (
            self.current_gradient_accumulation_steps * self.accelerator.num_processes
        )
