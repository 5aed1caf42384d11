"""The losses of reward models, one number a row: (B,). Means over them are the caller's."""

from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid


def pairwise_loss(
    chosen: Tensor, rejected: Tensor, margins: Tensor, center_coef: float = 0.0
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) + center_coef (chosen + rejected)^2.

    All (B,), in units of score. Bradley & Terry 1952, as Ouyang et al. 2022 (eq. 1) train it; the
    margin is Touvron et al. 2023's ("Llama 2", eq. 2), the other term Eisenstein et al. 2023's,
    which keeps scores near 0.
    """
    losses = -logsigmoid(chosen.float() - rejected.float() - margins)
    return losses + center_coef * (chosen.float() + rejected.float()).square()


def pointwise_loss(scores: Tensor, ratings: Tensor) -> Tensor:
    """(score - rating)^2, all (B,)."""
    return (scores.float() - ratings).square()


def binned_loss(logits: Tensor, ratings: Tensor) -> Tensor:
    """-log softmax(logits)[rating - 1] of logits (B, K) and ratings (B,) among 1 .. K."""
    return cross_entropy(logits.float(), ratings.long() - 1, reduction="none")
