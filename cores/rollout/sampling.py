"""One token a row out of its logits, by inversion of the distribution function.

A uniform number a token is drawn before the rollout, so the same seed gives the same replies
however rows are bucketed and moved. Shapes: b rows, V vocabulary.
"""

import torch
from torch import Tensor


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (b,), their log-probs and the entropies (b,), in nats and float32.

    The distribution is softmax(logits / temperature) of logits (b, V); the token of a row is the
    first at which the cumulated probability exceeds `uniform` (b,), in [0, 1). An id with
    probability 0 is never drawn.
    """
    logprobs = (logits.float() / temperature).log_softmax(dim=-1)
    probs = logprobs.exp()
    cumulated = probs.cumsum(dim=-1)
    # Below the total, though rounded: a float32 below 1 is at most 1 - 2^-24.
    target = uniform[:, None] * cumulated[:, -1:]
    tokens = torch.searchsorted(cumulated, target, right=True)
    chosen = logprobs.gather(1, tokens).squeeze(1)
    return tokens.squeeze(1), chosen, -(probs * logprobs).sum(dim=-1)
