"""How replies are sampled, and one token a row out of its logits: by inversion of the distribution
function.

The uniform number of each token is given before the rollout, so a reply is the same whatever rows
are beside it, however they are bucketed and moved. Shapes: b rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import StopStringCriteria


@dataclass(frozen=True)
class Sampling:
    """What every engine keeps to: unfiltered, by temperature and minimum length alone, which the
    actor's log-probs know of."""

    pad_id: int
    stop_ids: list[int]
    """Ids that end a reply."""
    max_new_tokens: int
    temperature: float
    min_new_tokens: int = 0
    """Tokens at the start of a reply of which none ends it."""
    autocast: bool = False
    """Whether the model computes under bfloat16 autocast, as in training."""
    text_matcher: StopStringCriteria | None = None
    """Finds the texts that end a reply; see `TextStops`."""


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (b,), their log-probs and the entropies (b,), in nats and float32.

    The distribution is softmax(logits / temperature) of logits (b, V); the token of a row is the
    first at which the cumulated probability exceeds `uniform` (b,), in [0, 1). An id with
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
