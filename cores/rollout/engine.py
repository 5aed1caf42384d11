"""What a rollout is, and what makes one.

Shapes: B rows, P prompt tokens (left-padded), T response tokens (right-padded), L = P + T.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """Prompts and the replies sampled for them."""

    ids: Tensor
    """(B, L) int64: prompt then response."""
    mask: Tensor
    """(B, L) bool: True at tokens of the row, False at padding."""
    response_mask: Tensor
    """(B, T) bool: True from the first response token to the stop token or the last."""
    logprobs: Tensor
    """(B, T) float32, nats: of each response token as it was sampled; 0 outside the mask."""
    ended: Tensor
    """(B,) bool: whether the reply stopped, by a stop token or a stop string."""
    entropy: Tensor | None = None
    """(B, T) nats: of the distribution that each token was sampled from, if the engine tells."""

    @property
    def response_ids(self) -> Tensor:
        """(B, T) int64."""
        return self.ids[:, self.ids.shape[1] - self.response_mask.shape[1] :]

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: response tokens of each row."""
        return self.response_mask.sum(dim=1)

    def row(self, i: int) -> list[int]:
        """The tokens of row `i`, prompt and response, without padding."""
        return self.ids[i][self.mask[i]].tolist()


class RolloutEngine(Protocol):
    """Samples replies from the policy as it is now."""

    def generate(self, prompts: list[list[int]], uniform: Tensor) -> Rollout:
        """One reply for each prompt.

        uniform (B, T) in [0, 1), float32, on the CPU, T at least the new tokens of the longest
        reply: number t of row i decides token t of reply i, so a reply depends on its own row alone
        and on no generator.
        """
        ...


def response_mask(
    response: Tensor, stop_ids: Tensor, text_stops: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mask (B, T) up to and including the first stop token, and whether there was one, (B,).

    `text_stops` (B, T): True at tokens that complete a stop string, which are stops too.
    From positions alone: an id equal to pad before the stop is a token like any other.
    """
    stops = torch.isin(response, stop_ids)
    if text_stops is not None:
        stops = stops | text_stops
    before = stops.long().cumsum(dim=1) - stops.long()
    return before == 0, stops.any(dim=1)
