"""Rollouts that are listened to, and the filter of those that are for talking."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from _engines import BOTH, as_on_cuda, engine, numbers, replies
from _models import causal
from torch import Tensor

from cores.models.vocabulary import EXCLUDED_LOGIT
from cores.rollout.engine import nucleus

PROMPT = [[3, 4, 5, 6]]


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_a_listener_hears_every_token_and_changes_none(name: str, kind: str) -> None:
    """In their order; the rollout is the one that nobody listened to."""
    made = engine(name, causal(kind), tokens=40, stop_ids=[1])
    alone = made.generate(PROMPT, numbers(made, 1))
    heard: list[int] = []

    def listen(tokens: Tensor) -> bool:
        heard.append(int(tokens[0]))
        return heard[-1] == 1

    rollout = made.generate(PROMPT, numbers(made, 1), listen)
    assert replies(rollout) == replies(alone)
    assert torch.equal(rollout.logprobs, alone.logprobs)
    assert heard == rollout.row(0)[len(PROMPT[0]) :]


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_a_listener_ends_a_rollout(name: str, kind: str) -> None:
    """With what it heard, and nothing of the longer rollout before."""
    made = engine(name, causal(kind), tokens=20, stop_ids=[1])
    whole = made.generate(PROMPT, numbers(made, 1)).row(0)
    heard: list[int] = []

    def listen(tokens: Tensor) -> bool:
        heard.append(int(tokens[0]))
        return len(heard) == 3

    rollout = made.generate(PROMPT, numbers(made, 1), listen)
    assert rollout.row(0) == whole[: len(PROMPT[0]) + 3]
    assert not rollout.ended.any()


def test_only_the_nucleus_is_left() -> None:
    """Probabilities .4, .3, .2, .1 at temperature 1: the fewest that reach the share, one at least;
    logits that stay are as they were."""
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for share, kept in ((0.05, [1]), (0.39, [1]), (0.5, [1, 3]), (0.75, [1, 2, 3])):
        left = nucleus(logits, 1.0, share)
        assert (left[0] > EXCLUDED_LOGIT / 2).nonzero().flatten().tolist() == kept
        assert torch.equal(left[0, kept], logits[0, kept])
    # At temperature 1/2 they are squared: 16/30 and 9/30 reach .8, at 1 they do not.
    kept_cold = (nucleus(logits, 0.5, 0.8)[0] > EXCLUDED_LOGIT / 2).sum()
    assert (kept_cold, (nucleus(logits, 1.0, 0.8)[0] > EXCLUDED_LOGIT / 2).sum()) == (2, 3)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_an_engine_adopts_other_controls(
    name: str, kind: str, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer tokens, a cold draw within a small nucleus: what an engine made for them would say,
    though the one at hand sampled (and captured) by others before."""
    wanted: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.3, "top_p": 0.5}
    made = engine(name, causal(kind), tokens=12, stop_ids=[1])
    if captured and name == "graph":
        as_on_cuda(made, monkeypatch)
    before = made.generate(PROMPT, numbers(made, 1))
    made.sampling = replace(made.sampling, **wanted)
    found = made.generate(PROMPT, numbers(made, 1))
    fresh = engine(name, causal(kind), stop_ids=[1], temperature=0.3, tokens=5, top_p=0.5)
    assert replies(found) == replies(fresh.generate(PROMPT, numbers(fresh, 1)))
    assert found.row(0) != before.row(0)[: len(found.row(0))]
