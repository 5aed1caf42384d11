"""What 64 processes keep account of, one after the other in this one: prompts and replies that are
each rank's, rows put together, whitening, micro-batches, sums over ranks, and where a run goes on.
"""

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from cores.config import PPOSection
from cores.draws import in_epochs, share, uniforms
from cores.ppo import experience
from cores.ppo.experience import Scored, columns, estimate, gather_rows
from cores.ppo.passes import shared
from cores.rl import masked_mean
from cores.runtime import launch as launching
from cores.runtime.launch import Launch

WORLD, EACH = 64, 4
RANKS = [Launch(rank, WORLD, torch.device("cpu"), "fp32") for rank in range(WORLD)]
PPO = PPOSection(batch_size=WORLD * EACH, minibatch_size=2 * WORLD, microbatch_size=1)


def rows_of(rank: int, prompt: int, reply: int) -> Scored:
    """A rank's rows, their columns as wide as its own longest ones."""
    generator = torch.Generator().manual_seed(rank)
    asked = torch.randint(1, prompt + 1, (EACH,), generator=generator)
    said = torch.randint(1, reply + 1, (EACH,), generator=generator)
    asked[0], said[0] = prompt, reply
    places, tokens = torch.arange(prompt + reply), torch.arange(reply)
    response_mask = tokens < said[:, None]
    mask = (places >= prompt - asked[:, None]) & (places < prompt + said[:, None])

    def numbers() -> Tensor:
        return torch.randn((EACH, reply), generator=generator)

    scores = torch.randn(EACH, generator=generator) + rank / 10
    return Scored(
        ids=torch.randint(3, 50, mask.shape, generator=generator) * mask,
        mask=mask,
        response_mask=response_mask,
        ended=said < reply,
        rollout_logprobs=(logprobs := numbers()),
        logprobs=logprobs,
        ref_logprobs=numbers(),
        entropy=numbers().abs(),
        values=numbers(),
        scores=scores,
        score_parts=scores[:, None],
    )


@pytest.fixture(scope="module")
def parts() -> list[Scored]:
    """Of all ranks, of many widths."""
    return [rows_of(rank, 3 + rank % 5, 2 + rank % 7) for rank in range(WORLD)]


@pytest.fixture
def gathered(parts: list[Scored], monkeypatch: pytest.MonkeyPatch) -> list[Scored]:
    """What each rank has behind the exchange."""
    sent = [columns(part) for part in parts]
    monkeypatch.setattr(experience, "gather_object", lambda own: sent)
    return [gather_rows(part, rank) for part, rank in zip(parts, RANKS, strict=True)]


def same(one: Scored, other: Scored) -> bool:
    """To the bit."""
    both = columns(one), columns(other)
    return all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_every_rank_has_every_row_at_its_place(parts: list[Scored], gathered: list[Scored]) -> None:
    assert all(same(rows, gathered[0]) for rows in gathered)
    for rank, part in enumerate(parts):
        own = gathered[0].select(range(rank * EACH, (rank + 1) * EACH))
        assert own.lengths == part.lengths
        assert torch.equal(own.ids[own.mask], part.ids[part.mask])
        assert torch.equal(own.values[own.response_mask], part.values[part.response_mask])


def test_advantages_are_white_over_all_rows(gathered: list[Scored]) -> None:
    """Over all ranks, where each rank's own are far from it; the same on every rank."""
    found = [estimate(rows, PPO, 0.1) for rows in (gathered[0], gathered[-1])]
    advantages, mask = found[0].advantages, found[0].response_mask
    assert torch.equal(advantages, found[1].advantages)
    assert masked_mean(advantages, mask).item() == pytest.approx(0, abs=1e-5)
    assert masked_mean(advantages.square(), mask).item() == pytest.approx(1, abs=1e-3)
    own = [masked_mean(a, m).item() for a, m in zip(advantages.split(EACH), mask.split(EACH))]  # noqa: B905
    assert max(map(abs, own)) > 0.2


@pytest.mark.parametrize("packed", [True, False])
def test_ranks_deal_a_minibatch_out(gathered: list[Scored], packed: bool) -> None:
    """Each row goes to one rank, all have as many micro-batches, and what they add up to is the
    minibatch's: sums over a rank's tokens, over the tokens of all."""
    rows, lengths = list(range(0, WORLD * EACH, 2)), gathered[0].lengths
    dealt = shared(rows, lengths, PPO, halved=False, world=WORLD, packed=packed)
    assert sorted(chain.from_iterable(chain.from_iterable(dealt))) == rows
    assert len({len(rank) for rank in dealt}) == 1
    assert {sum(map(len, rank)) for rank in dealt} == {len(rows) // WORLD}
    values, mask = gathered[0].values, gathered[0].response_mask
    tokens = mask[rows].sum()
    sums = [masked_mean(values[part], mask[part], tokens) for rank in dealt for part in rank]
    assert torch.stack(sums).sum().item() == pytest.approx(
        masked_mean(values[rows], mask[rows]).item(), abs=1e-6
    )


def test_prompts_and_replies_do_not_hang_on_the_number_of_ranks() -> None:
    """Update 37 reads the same prompts and the same random numbers on 1, 16 and 64 ranks: a run may
    go on with another number at any update."""
    size, count = WORLD * EACH, 1000
    numbers = in_epochs(count, 37 * size, size, 5, "prompts")
    drawn = uniforms(size, 9, 5, "replies", 37)
    for world in (1, 16, WORLD):
        each = size // world
        asked = [share(numbers, rank, world) for rank in range(world)]
        assert list(chain.from_iterable(asked)) == numbers
        own = [uniforms(each, 9, 5, "replies", 37, first=rank * each) for rank in range(world)]
        assert torch.equal(torch.cat(own), drawn)
    before = in_epochs(count, 0, 38 * size, 5, "prompts")
    assert before[37 * size :] == numbers
    assert sorted(before[:count]) == list(range(count))


def test_statistics_are_added_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of all, and the largest of those that end in _max; in one order of names everywhere."""
    own = [{"loss": torch.tensor(rank / 2), "ratio_max": torch.tensor(-float(rank))}
           for rank in range(WORLD)]  # fmt: skip
    stacked = torch.stack([torch.stack([x["loss"], x["ratio_max"]]) for x in own])
    monkeypatch.setattr(launching, "reduce", lambda x, reduction: stacked.sum(dim=0))
    largest: Any = lambda x, op: x.copy_(stacked.amax(dim=0))  # noqa: E731
    monkeypatch.setattr(torch.distributed, "all_reduce", largest)
    for each in (own[3], dict(reversed(own[60].items()))):
        found = launching.over_ranks(each, WORLD)
        assert found["loss"].item() == WORLD * (WORLD - 1) / 4
        assert found["ratio_max"].item() == 0


def test_batches_divide_or_are_refused() -> None:
    assert [rank.share(PPO.minibatch_size, "ppo.minibatch_size") for rank in RANKS] == [2] * WORLD
    with pytest.raises(ValueError, match="96 rows do not divide over 64 processes"):
        RANKS[5].share(96, "ppo.minibatch_size")
