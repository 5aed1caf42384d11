"""Cross-entropy of stage 1 by rows, and steps whose loss is made of them: with a loss for each of
several sources, added by weights, and of models whose own loss is another."""

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


def row_sums(logits: Tensor, labels: Tensor, shifted: bool) -> Tensor:
    """Cross-entropy (B,), nats, summed over each row's trained tokens, of logits (B, T, V).

    shifted: a token of labels (B, T) is predicted at the place before it, as in models without an
    encoder.
    """
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    nats = cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view_as(labels).sum(dim=1)


class WeightedLosses(Lasting):
    """The loss of a step is the sum over sources of a source's weight times the mean over its
    trained tokens in that step, on all ranks (Awadalla et al. 2023 add those of two batches). A
    source without a row in a step adds nothing.

    Encoder-decoders have it with one source too: T5's own loss is a mean over the micro-batch, so
    that the result would hang on its size.
    """

    def __init__(self, *args: Any, weights: list[float], shifted: bool, **kwargs: Any) -> None:
        """shifted: see `row_sums`."""
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
            own.index_add_(0, _parts(sample).to(device), counts)
        self.trained = self.accelerator.gather(own[None]).sum(dim=0).clamp(min=1)
        return samples, None

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """A micro-batch's share, times the number of micro-batches on all ranks, which the trainer
        divides by."""
        own = {name: tensor for name, tensor in inputs.items() if name not in ("labels", PART)}
        logits = model(**own, use_cache=False).logits
        share = self.weights.to(logits.device) / self.trained.to(logits.device)
        losses = row_sums(logits, inputs["labels"], self.shifted) * share[_parts(inputs)]
        return losses.sum() * (
            self.current_gradient_accumulation_steps * self.accelerator.num_processes
        )


def _parts(rows: Any) -> Tensor:
    """The source (B,) of each row of a micro-batch: the first where it has no number."""
    found: Tensor = rows.get(PART, torch.zeros_like(rows["labels"][:, 0]))
    return found
