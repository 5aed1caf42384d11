"""Memory that runs out once: micro-batches of half as many rows, and the same numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import (
    PROMPTS,
    ROUNDING,
    PPOTrainer,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
)

from cores.errors import UserError
from cores.models import Actor
from cores.sharding import Whole

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Short:
    """An actor whose memory is short: passes of more than `rows` rows fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int, grad: bool) -> None:
        self.failed = 0
        forward = Actor.forward

        def limited(actor: Any, ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            result = forward(actor, ids, *args, **kwargs)
            if ids.shape[0] > rows and torch.is_grad_enabled() is grad:
                self.failed += 1
                raise FULL
            return result

        monkeypatch.setattr(Actor, "forward", limited)


def stepped(trainer: PPOTrainer) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    _, stats = trainer.step(PROMPTS)
    return parameters(trainer.roles.actor.unwrapped), stats


@pytest.mark.parametrize("where", ["score", "update"])
def test_half_the_rows_make_the_same_step(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within rounding; it is said, and kept with the state."""
    options: dict[str, Any] = {"microbatch_size": 1 if where == "score" else 4, **ROUNDING}
    wanted, figures = stepped(make_trainer("gpt2", **options))
    short = Short(monkeypatch, 2, grad=where == "update")
    trainer = make_trainer("gpt2", **options)
    got, found = stepped(trainer)
    assert short.failed == 1
    assert trainer.state.halved
    assert trainer.state_dict().numbers["halved"] is True
    assert "memory ran out; from here on micro-batches are half as large" in capsys.readouterr().out
    assert largest_difference(wanted, got) < 1e-6
    assert found == pytest.approx(figures, rel=1e-4, abs=1e-5)


def test_a_second_time_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the options that would help."""
    Short(monkeypatch, 0, grad=False)
    with pytest.raises(UserError, match=r"memory ran out \(CUDA out of memory.*microbatch_size"):
        make_trainer("gpt2").score(fixed_rollout())


class Shards(Whole):
    """One process that holds shards, as DeepSpeed and FSDP2 do."""

    apart = False


def test_shards_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one process neither: FSDP2 would take another step than without the failure."""
    trainer = make_trainer("gpt2", microbatch_size=4)
    trainer.roles = replace(trainer.roles, sharding=Shards("fp32", cpu=True))
    short = Short(monkeypatch, 2, grad=True)
    with pytest.raises(UserError, match="memory ran out"):
        trainer.step(PROMPTS)
    assert short.failed == 1
