"""Rows that models read without their padding: the same numbers, whatever lies beside a row."""

from typing import Any

import pytest
import torch
from _engines import CAPTURABLE
from _models import make_trainer
from _ppo import experience_of
from torch import Tensor

from cores.models.rows import pack, rounded

LENGTHS = [(2, 3), (4, 1), (1, 2), (3, 3)]
"""Prompt and response tokens of four rows, in columns of 4 and 3."""


@pytest.mark.parametrize("coarse", [False, True])
def test_places(coarse: bool) -> None:
    """Every token once, in order, at its own position, told by the token before it; rows do not
    overlap in the grid, and filler belongs to no row."""
    made = pack(LENGTHS, 4, 3, coarse)
    ids = torch.tensor([[7 * row + column for column in range(7)] for row in range(4)])
    mask = torch.tensor([[0] * (4 - p) + [1] * (p + r) + [0] * (3 - r) for p, r in LENGTHS]).bool()
    flat = torch.nn.functional.pad(ids.flatten(), (0, 1), value=-1)
    read = flat[made.tokens]
    assert read[read >= 0].tolist() == ids[mask].tolist()
    count = int(mask.sum())
    assert len(read) == (rounded(count) if coarse else count)
    assert made.positions[:count].tolist() == [i for p, r in LENGTHS for i in range(p + r)]
    assert made.starts.tolist() == [0, 5, 10, 13, 19, len(read)]
    assert made.starts.diff().max() <= made.longest
    assert len(set(made.grid.tolist())) == len(read)
    assert made.grid.max() < 5 * made.longest
    replies = torch.nn.functional.pad(ids[:, 4:].flatten(), (0, 1), value=-1)[made.replies]
    said = replies >= 0
    assert (read[made.before[said]] == replies[said] - 1).all()
    assert replies[said].tolist() == ids[:, 4:][mask[:, 4:]].tolist()


def test_few_sizes() -> None:
    """At most an eighth more, or 15, and few of them."""
    sizes = [rounded(count) for count in range(1, 4096)]
    most = [max(count * 9 / 8, count + 15) for count in range(1, 4096)]
    assert all(n <= size <= m for n, (size, m) in enumerate(zip(sizes, most, strict=True), start=1))
    assert len(set(sizes)) < 50


@pytest.mark.parametrize("kind", CAPTURABLE)
@pytest.mark.parametrize("widths", [1, 4])
def test_the_same_numbers_and_gradients(kind: str, widths: int) -> None:
    """Invariant 4, of both models, also with filler tokens and rows of nothing."""
    trainer = make_trainer(kind, batch_size=6, minibatch_size=6)
    experience = experience_of(trainer, rows=6)
    assert trainer.roles.packs
    for role in trainer.roles.trained:
        found = []
        for packed in (False, True):
            batch = experience.select([3, 0, 4, 1, 5], widths, packed)
            assert (batch.packing is not None) == packed
            values = said_of(role, batch)[:5]
            width = min(values.shape[1], experience.response_mask.shape[1])
            where = batch.response_mask[:5, :width]
            values[:, :width][where].square().sum().backward()
            grads = [p.grad.clone() for p in role.trained.parameters if p.grad is not None]
            role.trained.clear()
            found.append([values[:, :width][where], *grads])
        assert len(found[0]) > 4
        for padded, side_by_side in zip(*found, strict=True):
            apart = (side_by_side - padded).abs().max().item()
            assert apart <= 1e-5 * max(1.0, padded.abs().max().item())


def test_shapes_come_again() -> None:
    """Whatever rows are taken, those that a graph reads have one shape."""
    experience = experience_of(make_trainer("gpt2"))
    shapes = {experience.select(rows, 4, True).ids.shape for rows in ([0], [1, 2], [7, 3, 5])}
    assert len(shapes) == 1


def test_a_prompt_of_nothing_is_not_packed() -> None:
    """There is no token that the first one of its reply could come from."""
    experience = experience_of(make_trainer("gpt2"))
    vars(experience)["lengths"] = [(0, 3), *experience.lengths[1:]]
    assert experience.select([1, 2], packed=True).packing is None


def said_of(role: Any, batch: Any) -> Tensor:
    """(B, T) log-probs of an actor, values of a critic."""
    says = role.says
    return says.logprobs(batch.rows)[0] if role.name == "actor" else says.values(batch.rows)
