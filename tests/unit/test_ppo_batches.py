"""Micro-batches by token budget: how rows are cut, on every rank alike; nothing changes."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import (
    FAMILIES,
    PPO,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
    policy_of,
    scalar_of,
)
from _ppo import SGD, experience_of

from cores.config import Config
from cores.config.validate import check
from cores.models import Actor, ScalarModel
from cores.ppo.passes import cut, deal, in_parts, shared
from cores.runtime.launch import Launch

LENGTHS = [(3, 5), (6, 2), (1, 1), (4, 4), (2, 6), (6, 6)]


def padded(part: list[int], lengths: list[tuple[int, int]]) -> int:
    """Tokens of the forward pass of a part."""
    prompts, responses = zip(*(lengths[i] for i in part), strict=True)
    return len(part) * (max(prompts) + max(responses))


def test_cut_by_hand() -> None:
    """The longest first; rows (6, 6), (3, 5) and (6, 2) are 3 * 12 tokens together."""
    assert shared(range(6), LENGTHS, PPO, halved=False) == [[[5, 0, 1, 3], [4, 2]]]
    assert shared(range(6), LENGTHS, PPO, halved=True) == [[[5, 0], [1, 3], [4, 2]]]
    assert cut([5, 0, 1, 3, 4, 2], LENGTHS, 1, 4) == [[5, 0, 1, 3], [4, 2]]
    assert cut([5, 0, 1, 3, 4, 2], LENGTHS, 36, None) == [[5, 0, 1], [3, 4, 2]]
    assert cut([5, 0, 1, 3, 4, 2], LENGTHS, 35, None) == [[5, 0], [1, 3], [4, 2]]
    assert cut([5, 2], LENGTHS, 11, None) == [[5], [2]]  # longer than the budget: alone
    assert in_parts([[5, 0, 1], [2]], 4) == [[5], [0], [1], [2]]
    assert cut([0, 1, 2], [(8, 8), (1, 1), (1, 1)], 16, None) == [[0], [1, 2]]
    rows = [5, 0, 1, 3, 4, 2]
    assert deal(rows, LENGTHS, 46) == [rows]
    assert deal(rows, LENGTHS, 45) == [[5, 3, 2], [0, 1, 4]]  # 22, 24
    assert deal(rows, LENGTHS, 23) == [[5, 2], [0, 3], [1, 4]]
    assert deal(rows, LENGTHS, 11) == [[5], [0, 2], [1], [3], [4]]
    assert deal([5, 2], LENGTHS, 1) == [[5], [2]]
    long = [(30, 10), *LENGTHS]  # a row that has more does not make the others go alone
    assert deal([0, 6, 1, 2, 4, 5, 3], long, 23) == [[0], [6, 3], [1, 4], [2, 5]]
    assert deal(rows, LENGTHS, 46, times=2) == [[5, 2], [0, 3], [1, 4]]
    assert deal(rows, LENGTHS, 1000, times=2) == [[5, 3, 2], [0, 1, 4]]
    for parts, count in (([[1], [2]], 3), ([[1], [2]], 1)):
        with pytest.raises(ValueError, match="cannot be"):
            in_parts(parts, count)


def test_every_rank_takes_as_many() -> None:
    """Invariant 21: whatever the lengths, ranks have the same number of micro-batches, none empty
    and none above the budget, and together every row once."""
    draw = random.Random(0)
    for _ in range(200):
        world = draw.choice([1, 2, 3])
        rows = list(range(world * draw.randint(1, 8)))
        lengths = [(draw.randint(1, 9), draw.randint(0, 9)) for _ in rows]
        budget = draw.choice([None, 18, 30, 60])
        room = replace(PPO, microbatch_size=3, microbatch_tokens=budget)
        room, packed = replace(room, max_prompt_length=5, max_new_tokens=4), draw.random() < 0.5
        ranks = shared(rows, lengths, room, False, world, packed=packed)
        assert len({len(parts) for parts in ranks}) == 1
        micro = [part for parts in ranks for part in parts]
        assert all(micro)
        assert sorted(row for part in micro for row in part) == rows
        if packed:
            read = [sum(map(sum, (lengths[i] for i in part))) for part in micro]
            assert all(n <= (budget or 27) for n in read)
        elif budget is None:
            assert max(map(len, micro)) <= 3
        else:
            assert all(padded(part, lengths) <= budget for part in micro)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_budgets_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 4, 21: scores, parameters of actor and critic and every statistic are those of one
    forward pass, and no pass is above its budget."""
    monkeypatch.setattr("cores.ppo.score.FORWARD_FACTOR", 1)  # scoring in small parts too
    found = []
    for tokens in (None, 12, 25, 40):
        trainer = make_trainer(kind, microbatch_size=8, microbatch_tokens=tokens, **SGD)
        seen = forward_sizes(trainer)
        e = experience_of(trainer)
        stats = trainer.optimize(e, torch.arange(8))
        assert tokens is None or max(seen) <= tokens
        assert len(seen) == 2 if tokens is None else len(seen) > 2
        roles = trainer.roles
        found.append((e, parameters(roles.actor.module), parameters(roles.critic.module), stats))
    whole, *others = found
    for other in others:
        for name in ("logprobs", "ref_logprobs", "values"):
            a, b = (getattr(e, name)[e.response_mask] for e in (whole[0], other[0]))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other[0].scores, whole[0].scores, atol=1e-5, rtol=1e-5)
        assert largest_difference(whole[1], other[1]) < 1e-6
        assert largest_difference(whole[2], other[2]) < 1e-6
        for name, value in whole[3].items():
            assert float(other[3][name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def forward_sizes(trainer: Any) -> list[int]:
    """Tokens of each forward pass of the actor from now on."""
    seen: list[int] = []
    hook = trainer.roles.actor.module.register_forward_pre_hook
    hook(lambda _, args: seen.append((args[6].tokens if args[6] else args[0]).numel()))
    return seen


def test_a_budget_holds_for_rows_made_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where captured passes pad to multiples, the padding counts, if it is read."""
    trainer = make_trainer("gpt2", batch_size=8, minibatch_size=8, microbatch_tokens=24)
    monkeypatch.setattr(trainer.passes, "packed", False)
    experience = trainer.estimate(trainer.score(fixed_rollout(8)))
    for widths in (1, 4, 8):
        monkeypatch.setattr(trainer.passes, "widths", widths)
        sizes = []
        for batch, _ in trainer._micro_batches(experience, range(8)):
            sizes.append(len(batch.ids))
            assert batch.ids.numel() <= 24 or len(batch.ids) == 1
        assert sum(sizes) == 8
    assert max(sizes) < 8


def test_scoring_takes_more_at_a_time() -> None:
    """4 times what the update takes, rows or tokens; rows without padding by the tokens of so many
    of the longest."""
    longest = {"max_prompt_length": 8, "max_new_tokens": 4}
    for budget in ({"microbatch_size": 1, **longest}, {"microbatch_tokens": 12}):
        trainer = make_trainer("gpt2", **budget)
        seen = forward_sizes(trainer)
        trainer.score(fixed_rollout(8))
        assert len(seen) == 2


def test_ranks_that_score_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 21: where another rank needs 5 forward passes for its rows this one makes 5."""
    trainer = make_trainer("gpt2")
    alone = trainer.score(fixed_rollout(8))
    monkeypatch.setattr(Launch, "agree", lambda self, count: [max(count, 5)])
    monkeypatch.setattr(Launch, "together", lambda self, action, memory=False: action())
    trainer.launch = Launch(0, 2, torch.device("cpu"), "fp32")
    seen = forward_sizes(trainer)
    scored = trainer.score(fixed_rollout(8))
    assert len(seen) == 5
    valid = scored.response_mask
    torch.testing.assert_close(scored.logprobs[valid], alone.logprobs[valid])


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_no_mask_where_nothing_is_padding(kind: str) -> None:
    """Invariant 4: the same numbers without the mask, which is left out exactly there."""
    made = fixed_rollout(3, prompts=[[5, 9, 13], [7, 8, 9], [20, 21, 22]])
    scored = make_trainer("gpt2").score(made)
    whole = [i for i, (_, response) in enumerate(scored.lengths) if response == 6]
    batch = scored.select(whole)
    assert batch.attended is None
    assert batch.mask.all()
    assert scored.attended is scored.mask
    policy, scalar = Actor(policy_of(kind), 1.0), ScalarModel(scalar_of(kind))
    for a, b in (
        (policy(batch.ids, batch.mask, 6)[0], policy(batch.ids, None, 6)[0]),
        (scalar(batch.ids, batch.mask), scalar(batch.ids, None)),
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_a_part_knows_its_lengths() -> None:
    """They are the device's own, in the order asked for, however wide the part is made."""
    scored = make_trainer("gpt2").score(fixed_rollout(8))
    for widths in (1, 8):
        part = scored.select([4, 1, 2], widths)
        known = part.lengths
        del vars(part)["lengths"]
        assert part.lengths == known


def test_budgets_below_a_row_are_refused() -> None:
    """A row cannot be cut; nor is a budget of nothing one."""
    few = replace(PPO, microbatch_tokens=261)
    problems = dict(check(Config(ppo=few)))
    assert "ppo.max_new_tokens is 262; choose at least that" in problems["ppo.microbatch_tokens"]
    assert not list(check(Config(ppo=replace(PPO, microbatch_tokens=262))))
    assert list(check(Config(ppo=replace(PPO, microbatch_tokens=0))))
