"""Compute in float16: losses are scaled, a step that overflows is left out, and the factor with it
goes on where a run does."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import (
    FAMILIES,
    LAUNCH,
    PROMPTS,
    PPOTrainer,
    largest_difference,
    make_trainer,
    parameters,
    parents,
    ppo_config,
    toy_tokenizer,
)
from _ppo import experience_of
from torch import Tensor

from cores import sharding
from cores.config import ModelSection
from cores.errors import UserError
from cores.ppo import build_roles
from cores.runtime import launch
from cores.sharding import scale as scales
from cores.sharding.scale import EVERY, LossScale
from cores.training.ppo import build_trainer

FLOAT16 = replace(LAUNCH, precision="fp16")
FIRST = 256.0
"""Models of such a size overflow with the factor that runs begin with."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scales, "FIRST", FIRST)


def trainer_of(kind: str = "gpt2", **ppo: Any) -> PPOTrainer:
    """A trainer that computes in float16."""
    ppo = {"actor_learning_rate": 1e-3, "updates": 9, **ppo}
    config = replace(ppo_config(**ppo), model=ModelSection(precision="fp16"))
    roles = build_roles(config, toy_tokenizer(), parents(kind), FLOAT16)
    return build_trainer(config, roles, toy_tokenizer(), FLOAT16)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_step_is_that_of_fp32_within_rounding(kind: str) -> None:
    """Gradients come out as they would without the factor: their norms are those of fp32."""
    plain, half = make_trainer(kind, actor_learning_rate=1e-3, updates=9), trainer_of(kind)
    experience = experience_of(plain)
    expected, found = plain.update(experience), half.update(experience)
    for near, a, b in zip([0.02, 0.1, 0.1, 0.1], expected, found, strict=False):
        for name in ("policy_loss", "value_loss", "actor_grad_norm", "critic_grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=near, abs=near / 10)
    assert [step["skipped_steps"] for step in found] == [0.0] * len(found)
    assert {p.dtype for p in half.roles.actor.trained.parameters} == {torch.float32}


def test_the_factor() -> None:
    """By hand: half of it behind a bad step, twice it behind `EVERY` good ones in a row."""
    scale, bad, good = LossScale(torch.device("cpu")), torch.tensor(True), torch.tensor(False)
    scale.update(good)
    assert scale.state_dict() == [FIRST, 1.0]
    scale.update(bad)
    assert scale.state_dict() == [FIRST / 2, 0.0]
    for _ in range(int(EVERY) - 1):
        scale.update(good)
    assert scale.state_dict() == [FIRST / 2, EVERY - 1]
    scale.update(good)
    assert scale.state_dict() == [FIRST, 0.0]
    gradients = [torch.tensor([FIRST, -3.0 * FIRST])]
    scale.unscale(gradients)
    assert gradients[0].tolist() == [1.0, -3.0]
    scale.load_state_dict([0.5, 7.0])
    assert scale.lost
    assert scale.state_dict() == [0.5, 7.0]


def overflow(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch, until: float) -> None:
    """Gradients of the actor are infinite while its factor is above `until`."""
    actor, backward = trainer.roles.actor.trained, type(trainer.roles.actor.trained).backward

    def planted(trained: Any, loss: Tensor, last: bool) -> None:
        backward(trained, loss, last)
        if trained is actor and trained.scale.factor > until:
            trained.parameters[0].grad.fill_(torch.inf)

    monkeypatch.setattr(type(actor), "backward", planted)


def test_a_step_that_overflows_changes_nothing_and_is_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither weights nor moments: the first update's steps are left out until the factor fits,
    whatever `faults.nonfinite` says."""
    trainer = trainer_of(epochs=1, minibatch_size=len(PROMPTS), batch_size=len(PROMPTS))
    before = parameters(trainer.roles.actor.unwrapped)
    overflow(trainer, monkeypatch, FIRST / 4)
    found = [trainer.update(experience_of(trainer, len(PROMPTS))) for _ in range(2)]
    assert [steps[0]["skipped_steps"] for steps in found] == [1.0, 1.0]
    assert all("actor_grad_norm" not in step for steps in found for step in steps)
    assert largest_difference(before, parameters(trainer.roles.actor.unwrapped)) == 0.0
    moments = trainer.roles.actor.optimizer.state.values()
    assert all(not state["exp_avg"].any() and float(state["step"]) == 0 for state in moments)
    assert trainer.state.skipped == 0
    (step,) = trainer.update(experience_of(trainer, len(PROMPTS)))
    assert step["skipped_steps"] == 0.0
    assert largest_difference(before, parameters(trainer.roles.actor.unwrapped)) > 1e-4
    kept = trainer.state_dict().numbers["loss_scales"]
    assert kept == {"actor": [FIRST / 4, 1.0], "critic": [FIRST, 3.0]}


def test_gradients_that_no_factor_saves_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(updates=99)
    overflow(trainer, monkeypatch, 0.0)
    experience = experience_of(trainer, len(PROMPTS))
    with pytest.raises(UserError, match=r"actor_grad_norm not finite .*--model.precision fp32"):
        _ = [trainer.update(experience) for _ in range(20)]
    assert trainer.roles.actor.trained.scale.lost


def test_a_run_goes_on_with_its_factors() -> None:
    """A checkpoint has them, and a trainer that loads it has the same ones."""
    first = trainer_of()
    first.step(PROMPTS)
    first.roles.actor.trained.scale.update(torch.tensor(True))
    saved = first.state_dict()
    again = trainer_of()

    class Read:
        numbers, step = saved.numbers, saved.numbers["update"]

        def parts(self, start: str) -> dict[str, Any]:
            return {}

    again.load_state_dict(Read())  # type: ignore[arg-type]
    for role in ("actor", "critic"):
        kept = [getattr(t.roles, role).trained.scale.state_dict() for t in (first, again)]
        assert kept[0] == kept[1] != [FIRST, 0.0]


def test_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, and with shards: refused by name."""
    config = replace(ppo_config(), model=ModelSection(precision="fp16"))
    with pytest.raises(UserError, match=r"fp16 is for GPUs.*set it to fp32"):
        launch.launch(config)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="fp16 does not go with DeepSpeed or FSDP2"):
        sharding.sharding("fp16", cpu=True)
