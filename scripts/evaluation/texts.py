"""What is measured of replies as texts, and the choice among several of them. No model in here."""

import math
from collections import Counter
from collections.abc import Sequence

from scripts.evaluation.stats import Z95, Estimate

REPEATED = 4
"""Words of the n-gram whose second occurrence counts as repetition."""


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The n-grams of a text's words (what white space separates), in order."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> Estimate:
    """Different n-grams over all n-grams of the texts, with its 95% interval.

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
        return Estimate(0.0, 0.0, 0.0)
    left_out = []
    for count in counts:
        lost = sum(total[gram] == times for gram, times in count.items())
        rest = size - count.total()
        left_out.append((len(total) - lost) / rest if rest else 0.0)
    centre = sum(left_out) / len(texts)
    variance = (len(texts) - 1) / len(texts) * sum((x - centre) ** 2 for x in left_out)
    value, half = len(total) / size, Z95 * math.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


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


def expected_best(wanted: Sequence[float], told: Sequence[float], n: int) -> float:
    """Mean of `told` over the best by `wanted` of n of the M replies, over all choices of n.

    The reply of rank i (1 the worst) is the best in C(i - 1, n - 1) of the C(M, n) choices, so no
    draw is wasted. Of equals the later counts as the better. ValueError for n beyond M.
    """
    total = len(wanted)
    if not 1 <= n <= total:
        raise ValueError(f"the best of {n} among {total} replies")
    ranked = sorted(range(total), key=wanted.__getitem__)
    weights = [math.comb(i, n - 1) for i in range(total)]
    return sum(w * told[i] for w, i in zip(weights, ranked, strict=True)) / math.comb(total, n)
