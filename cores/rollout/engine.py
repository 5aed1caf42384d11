"""What a rollout is, what makes one, and how its tokens are drawn.

Shapes: B rows, P prompt tokens (left-padded), T response tokens (right-padded), L = P + T,
V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import StopStringCriteria

from cores.models.rows import replies
from cores.models.vocabulary import EXCLUDED_LOGIT


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
    images: Tensor | None = None
    """(B, M, C, H, W) float32: pixels of each row's images, see `Pictures`; None: there is none."""
    shown: Tensor | None = None
    """(B, M) bool: which of them there are."""

    @property
    def response_ids(self) -> Tensor:
        """(B, T) int64."""
        return replies(self.ids, self.response_mask.shape[1])

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: response tokens of each row."""
        return self.response_mask.sum(dim=1)

    def row(self, i: int) -> list[int]:
        """The tokens of row `i`, prompt and response, without padding."""
        return self.ids[i][self.mask[i]].tolist()


@dataclass(frozen=True)
class Sampling:
    """What every engine keeps to. In training unfiltered, by temperature and minimum length alone,
    which the actor's log-probs know of."""

    pad_id: int
    stop_ids: list[int]
    """Ids that end a reply."""
    max_new_tokens: int
    temperature: float
    min_new_tokens: int = 0
    """Tokens at the start of a reply of which none ends it."""
    autocast: torch.dtype | None = None
    """What the model computes in under autocast, as in training; None: in its own type."""
    text_matcher: StopStringCriteria | None = None
    """Finds the texts that end a reply; see `TextStops`."""
    top_p: float = 1.0
    """Probability of the tokens that are drawn from (`nucleus`). Below 1 to talk, never to train:
    the actor's log-probs know of no such filter."""


Listener = Callable[[Tensor], bool]
"""Told the newest token of every row, (B,), as it is drawn; a rollout ends where it says True."""


class RolloutEngine(Protocol):
    """Samples replies from the policy as it is now."""

    sampling: Sampling
    """May be another from one rollout to the next."""

    def generate(
        self, prompts: list[list[int]], uniform: Tensor, listen: Listener | None = None
    ) -> Rollout:
        """One reply for each prompt, whatever rows are beside it.

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


def cut_at_stops(
    sampling: Sampling,
    ids: Tensor,
    mask: Tensor,
    tokens: Tensor,
    text_stops: Tensor | None,
    logprobs: Tensor,
    entropies: Tensor,
) -> Rollout:
    """What was sampled (B, T) behind the prompts ids, mask (B, P), as wide as the longest reply."""
    stops = torch.tensor(sampling.stop_ids, device=tokens.device)
    kept, ended = response_mask(tokens, stops, text_stops)
    wide = int(kept.sum(dim=1).max())
    kept = kept[:, :wide]
    return Rollout(
        ids=torch.cat([ids, torch.where(kept, tokens[:, :wide], sampling.pad_id)], dim=1),
        mask=torch.cat([mask, kept], dim=1),
        response_mask=kept,
        logprobs=torch.where(kept, logprobs[:, :wide], 0.0),
        ended=ended,
        entropy=torch.where(kept, entropies[:, :wide], 0.0),
    )


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Logits (B, V) without all but the likeliest tokens that have `top_p` of the probability at
    `temperature` (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration")."""
    ordered, places = logits.float().sort(dim=-1, descending=True)
    probs = (ordered / temperature).softmax(dim=-1)
    beyond = probs.cumsum(dim=-1) - probs >= top_p  # before the token, so that one always stays
    return logits.masked_fill(beyond.scatter(-1, places, beyond), EXCLUDED_LOGIT)


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B,), by inversion, their log-probs and the entropies (B,), in nats and float32.

    The distribution is softmax(logits / temperature) of logits (B, V); the token of a row is the
    first at which the cumulated probability exceeds `uniform` (B,), in [0, 1). An id with
    probability 0 is never drawn. A row with a logit of NaN or +inf has a log-prob of NaN.
    """
    logprobs = (logits.float() / temperature).log_softmax(dim=-1)
    probs = logprobs.exp()
    cumulated = probs.cumsum(dim=-1)
    # Below the total, though rounded: a float32 below 1 is at most 1 - 2^-24.
    target = uniform[:, None] * cumulated[:, -1:]
    # Of NaN it is behind the last: within the vocabulary, whose log-probs tell.
    tokens = torch.searchsorted(cumulated, target, right=True).clamp(max=logits.shape[-1] - 1)
    chosen = logprobs.gather(1, tokens).squeeze(1)
    return tokens.squeeze(1), chosen, -(probs * logprobs).sum(dim=-1)
