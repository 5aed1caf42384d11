"""What an update does without looking: it never waits for the device, and still stops at NaN."""

import math
from typing import Any

import pytest
import torch
from _models import KINDS, fixed_rollout, largest_difference, make_trainer, parameters
from _ppo import experience_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from cores.draws import permutation
from cores.errors import UserError
from cores.ppo.experience import read
from cores.runtime.launch import over_ranks


def test_a_step_that_is_no_number_is_named_and_left_out() -> None:
    """Invariant 23: of 4 steps the third of the critic; no weight ever becomes NaN, and the other
    steps are taken. The optimizers' own counts leave it out."""
    trainer = make_trainer("gpt2", batch_size=8, minibatch_size=2)
    e = experience_of(trainer)
    third = permutation(8, trainer.seed, "minibatches", 0, 0)[4]
    e.returns[third, 0] = math.inf
    roles = (trainer.roles.actor, trainer.roles.critic)
    start = [parameters(role.module) for role in roles]
    with pytest.raises(UserError, match=r"critic_grad_norm not finite in optimizer step 3 of"):
        trainer.update(e)
    for role, before, steps in zip(roles, start, (4, 3), strict=True):
        after = parameters(role.module)
        assert all(torch.isfinite(p).all() for p in after.values())
        assert largest_difference(before, after) > 0
        assert {int(s["step"]) for s in role.optimizer.state.values()} == {steps}


class Waits(TorchDispatchMode):
    """How often the host asked for a number that the device computes, or for a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = ("local_scalar_dense", "nonzero", "masked_select", "aten.equal.")
        self.count += any(name in str(func) for name in asks)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stops", [False, True])
def test_an_update_does_not_wait_for_the_device(kind: str, stops: bool) -> None:
    """However many steps and micro-batches it has, it reads once, at its end, unless it may have to
    stop early. Of rows without padding: transformers looks into a mask."""
    found, looks = [], dict(vars(masking_utils))
    for epochs, size in ((1, 4), (3, 1)):
        trainer = make_trainer(
            kind, epochs=epochs, batch_size=8, minibatch_size=4, microbatch_size=size,
            min_new_tokens=2, early_stop_kl=1e9 if stops else None,
        )  # fmt: skip
        made = fixed_rollout(8, prompts=[[5, 9, 13]] * 8)
        for mask in (made.mask, made.response_mask):
            mask[:] = True
        experience = trainer.estimate(trainer.score(made))
        with Waits() as waits:
            steps = trainer.update(experience)
        assert len(steps) == 2 * epochs
        found.append(waits.count)
        assert vars(masking_utils) == looks
    assert found[1] - found[0] == (4 if stops else 0)  # one a step


def test_statistics_are_read_at_once() -> None:
    """Numbers come back in the places of their tensors; what is a number already stays."""
    steps = [{"a": torch.tensor(1.5), "rate": 0.25}, {"b": torch.tensor(2.0), "a": torch.tensor(3)}]
    assert read(steps) == [{"a": 1.5, "rate": 0.25}, {"b": 2.0, "a": 3.0}]
    assert read([{}, {"rate": 1.0}]) == [{}, {"rate": 1.0}]
    with Waits() as waits:
        read([{"a": torch.tensor(1.0)}] * 9)
    assert waits.count <= 1


def test_sums_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 21, 24: of 1, 5 here and 3, 2 on the other rank: sums, and the largest of _max."""
    other = torch.tensor([3.0, 2.0])
    monkeypatch.setattr("cores.runtime.launch.reduce", lambda own, reduction: own + other)

    def largest(own: torch.Tensor, op: Any) -> None:
        own.copy_(torch.maximum(own, other))

    monkeypatch.setattr(torch.distributed, "all_reduce", largest)
    sums = {"ratio_max": torch.tensor(5.0), "loss": torch.tensor(1.0)}
    assert read([over_ranks(sums, 2)]) == [{"loss": 4.0, "ratio_max": 5.0}]
    assert read([over_ranks(sums, 1)]) == [{"loss": 1.0, "ratio_max": 5.0}]
