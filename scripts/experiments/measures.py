"""What is measured of replies as texts, the choice among several of them, and what PPO pays for a
whole update. No model in here."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

Z95 = 1.96
"""Half-width of a 95% interval in standard errors."""
REPEATED = 4
"""Words of the n-gram whose second occurrence counts as repetition."""
MISSING_EOS_PENALTY = 2.0
"""The demo's, configs/demo.yaml."""


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The n-grams of a text's words (what white space separates), in order."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> tuple[float, float]:
    """Different n-grams over all n-grams of the texts, and the half-width of a 95% interval.

    Li et al. 2016, "A diversity-promoting objective function for neural conversation models"; no
    n-gram spans two texts. It falls with the number of texts, so only equal numbers compare. The
    interval is of the jackknife over texts: variance (N - 1) / N * sum of (left out - mean)^2.
    0 if there is no n-gram.
    """
    counts = [Counter(ngrams(text, n)) for text in texts]
    total: Counter[tuple[str, ...]] = Counter()
    for count in counts:
        total.update(count)
    size = total.total()
    if not size:
        return 0.0, 0.0
    left_out = []
    for count in counts:
        lost = sum(total[gram] == times for gram, times in count.items())
        rest = size - count.total()
        left_out.append((len(total) - lost) / rest if rest else 0.0)
    centre = sum(left_out) / len(texts)
    variance = (len(texts) - 1) / len(texts) * sum((x - centre) ** 2 for x in left_out)
    return len(total) / size, Z95 * math.sqrt(variance)


def repeats(text: str, n: int = REPEATED) -> bool:
    """Whether some n-gram of words occurs twice."""
    found = ngrams(text, n)
    return len(set(found)) < len(found)


def best_of(scores: Sequence[float], n: int) -> list[int]:
    """Row number of the best of each n consecutive scores, the first of equals.

    ValueError if n does not divide their number.
    """
    if n < 1 or len(scores) % n:
        raise ValueError(f"{len(scores)} scores are not groups of {n}")
    starts = range(0, len(scores), n)
    return [max(range(start, start + n), key=scores.__getitem__) for start in starts]


def best_of_kl(n: int) -> float:
    """KL of the best of n replies from the policy that they are drawn from, nats a reply.

    log n - (n - 1) / n (Stiennon et al. 2020, "Learning to summarize from human feedback"): exact
    where no two replies are alike, an upper bound otherwise (Beirami et al. 2024, "Theoretical
    guarantees on the alignment of best-of-n policy").
    """
    return math.log(n) - (n - 1) / n


def gained(row: Mapping[str, float], kl_coef: float) -> float:
    """What PPO maximises, of one update's metrics: score - kl_coef * KL, nats a reply.

    The missing-EOS penalty is taken off both sides' scores: TRL's has lost it where it is logged,
    and our `score` loses it here, by the share `ended` of replies that stopped by themselves.
    """
    penalty = MISSING_EOS_PENALTY * (1 - row["ended"]) if "ended" in row else 0.0
    return row["score"] - penalty - kl_coef * row["kl"]
