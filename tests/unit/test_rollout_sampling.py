"""One draw: the frequencies, the edges, and the rows that move between draws."""

from typing import Any

import pytest
import torch
from _models import model_config

from cores.models.vocabulary import EXCLUDED_LOGIT
from cores.rollout.engine import Sampling, sample
from cores.rollout.graph.buffers import StaticCache, Steps

JUST_BELOW = 1 - 2**-24
"""The largest float32 below 1."""


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_probabilities(temperature: float) -> None:
    """Invariants 2, 3: 40,000 draws from each of three distributions over 30 ids, of which two are
    excluded: Pearson's statistic is within five standard deviations of its mean, and the log-probs
    of what was drawn are those of softmax(logits / temperature)."""
    torch.manual_seed(0)
    logits = torch.randn(3, 30)
    logits[:, [0, 29]] = EXCLUDED_LOGIT
    rows = logits.repeat_interleave(40_000, dim=0)
    tokens, logprobs, entropies = sample(rows, torch.rand(len(rows)), temperature)
    exact = (logits.double() / temperature).log_softmax(dim=1)
    entropy = -(exact.exp() * exact).sum(dim=1)
    for i in range(3):
        drawn = slice(40_000 * i, 40_000 * (i + 1))
        counts = torch.bincount(tokens[drawn], minlength=30).double()
        assert counts[[0, 29]].sum() == 0
        wanted = 40_000 * exact[i].exp()
        statistic = ((counts - wanted).square() / wanted)[1:29].sum()
        assert statistic < 27 + 5 * (2 * 27) ** 0.5
        torch.testing.assert_close(logprobs[drawn], exact[i][tokens[drawn]].float())
        torch.testing.assert_close(entropies[drawn], entropy[i].float().expand(40_000))


def test_draws_by_hand() -> None:
    """Invariant 3: ids 1, 3, 4 with (1/2, 1/4, 1/4): the first whose cumulated probability exceeds
    the number; neither 0 nor the largest number draws an excluded id beside them."""
    logits = torch.full((8, 6), EXCLUDED_LOGIT)
    logits[:, [1, 3, 4]] = torch.tensor([0.5, 0.25, 0.25]).log()
    uniform = torch.tensor([0.0, 0.25, 0.49, 0.51, 0.74, 0.76, 0.99, JUST_BELOW])
    tokens, logprobs, entropies = sample(logits, uniform, 1.0)
    assert tokens.tolist() == [1, 1, 1, 3, 3, 4, 4, 4]
    ln2 = torch.tensor(2.0).log()
    torch.testing.assert_close(logprobs, -ln2 * torch.tensor([1.0, 1, 1, 2, 2, 2, 2, 2]))
    torch.testing.assert_close(entropies, 1.5 * ln2.expand(8))


def test_the_edges_of_large_vocabularies() -> None:
    """Invariant 3: 50,000 ids, whose sum of probabilities is 1 but for rounding: the ends of the
    range draw the first and the last id that have a probability."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(64, 50_000)
    logits[:, :100] = logits[:, -100:] = EXCLUDED_LOGIT
    for uniform in (0.0, JUST_BELOW):
        tokens, logprobs, _ = sample(logits, torch.full((64,), uniform), 1.0)
        assert ((tokens >= 100) & (tokens < 49_900)).all()
        assert (logprobs > -40).all()
        if uniform == 0:
            assert (tokens == 100).all()


def test_logits_that_are_not_finite() -> None:
    """An id that there is, and NaN for its log-prob; the rows beside it are untouched."""
    logits = torch.zeros(4, 6)
    logits[0], logits[1, 2], logits[2, 3] = torch.nan, torch.nan, torch.inf
    tokens, logprobs, _ = sample(logits, torch.full((4,), 0.5), 1.0)
    assert ((tokens >= 0) & (tokens < 6)).all()
    assert logprobs.isnan().tolist() == [True, True, True, False]
    assert tokens[3] == 3


def steps_of(rows: int, tokens: int, **changes: Any) -> Steps:
    """Steps over a cache whose first key in each row is the row's number."""
    cache = StaticCache(model_config("llama"), rows, 64, torch.float32, torch.device("cpu"))
    for buffer in (cache.keys, cache.values):
        buffer += torch.arange(rows)[:, None, None, None]
    return Steps(cache, Sampling(0, [1, 9], tokens, 1.0, **changes))


def test_rows_on_the_move() -> None:
    """Twice over: those that go on come first, in their order, each with its token, position,
    start, keys and the place where it writes; one that ended fills up what is asked for."""
    steps = steps_of(6, 4)
    mask = torch.arange(5) >= torch.tensor([0, 4, 2, 0, 1, 3])[:, None]
    steps.begin(6, mask, torch.rand(5, 4))
    assert steps.cache.position.tolist() == [4, 0, 2, 4, 3, 1]  # of the newest token
    assert steps.cache.start.tolist() == [0, 4, 2, 0, 1, 3]
    assert steps.ended.tolist() == [False] * 5 + [True]  # the sixth only fills up
    steps.token.copy_(torch.arange(20, 26))
    steps.ended[[0, 3]] = True
    steps.keep(4)

    def first(rows: int) -> list[list[float]]:
        cache = steps.cache
        columns = (steps.token, cache.position, steps.place, cache.start)
        keys = (cache.keys[1, :, 1, 7, 3], cache.values[0, :, 0, 9, 1])
        return [column[:rows].tolist() for column in (*columns, *keys)]

    order = [1, 2, 4, 0]
    assert first(4) == [
        [21, 22, 24, 20], [0, 2, 3, 4], [4, 8, 16, 0], [4, 2, 1, 0], order, order,
    ]  # fmt: skip
    assert steps.used == 4
    steps.ended[1] = True  # the first of those in use
    steps.keep(2)
    assert first(2) == [[22, 24], [2, 3], [8, 16], [2, 1], [2, 4], [2, 4]]
    steps.place += 1
    steps.uniform.fill_(0.5)
    steps.emit(torch.tensor([[0.0, 0, 0, 50, 0], [0, 0, 0, 0, 50]]))
    written = torch.zeros(6, 4, dtype=torch.long)
    written[[2, 4], 1] = torch.tensor([3, 4])
    assert torch.equal(steps.tokens, written)
    assert steps.token[:2].tolist() == [3, 4]
    assert steps.place[:2].tolist() == [10, 18]
    assert steps.cache.position[:2].tolist() == [3, 4]


def test_each_row_has_its_own_number_for_each_token() -> None:
    """Invariant 31: of uniform (R, T) the row's own at the token's place, wherever the row is."""
    steps = steps_of(3, 2)
    uniform = torch.tensor([[0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.5, 0.1, 0.0]])
    steps.begin(3, torch.ones(3, 4, dtype=torch.bool), uniform)
    even = torch.zeros(3, 10)
    steps.emit(even)
    steps.ended[0] = True
    steps.keep(2)
    steps.emit(even[:2])
    assert steps.tokens.tolist() == [[1, 0], [3, 7], [5, 1]]


def test_minimum_length_by_hand() -> None:
    """Invariant 3: a stop id has probability 0 in the first two tokens, its own in the third."""
    steps = steps_of(1, 3, min_new_tokens=2)
    steps.begin(1, torch.ones(1, 4, dtype=torch.bool), torch.rand(1, 3))
    for _ in range(3):
        logits = torch.zeros(1, 10)
        logits[0, 9] = 20.0
        steps.emit(logits)
    assert steps.tokens[0, 2] == 9
    assert not set(steps.tokens[0, :2].tolist()) & {1, 9}
    eight = torch.tensor(8.0).log().item()
    assert steps.logprobs[0, :2].tolist() == pytest.approx([-eight] * 2)
    assert steps.entropies[0].tolist() == pytest.approx([eight, eight, 0], abs=1e-5)
