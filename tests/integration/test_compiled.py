"""Compiled layers compute what they did before."""

import shutil

import pytest
import torch
from _models import largest_difference, make_trainer, parameters
from _ppo import experience_of
from transformers.modeling_layers import GradientCheckpointingLayer


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.long
def test_a_compiled_update_is_an_eager_one() -> None:
    """Invariant 20: an update; the rollout engine's copy of the actor is not compiled."""
    made = []
    for passes in ("eager", "compiled"):
        trainer = make_trainer("gpt2", passes=passes, actor_learning_rate=0.01, epochs=1)
        made.append((trainer, trainer.update(experience_of(trainer))))
    (eager, expected), (compiled, found) = made
    layers = [m for m in compiled.roles.actor.module.modules() if is_compiled(m)]
    assert layers
    assert all(isinstance(layer, GradientCheckpointingLayer) for layer in layers)
    assert not any(is_compiled(m) for m in compiled.engine.twin.model.modules())
    assert found == [pytest.approx(step, rel=1e-4, abs=1e-5) for step in expected]
    for role in ("actor", "critic"):
        a, b = (parameters(getattr(t.roles, role).unwrapped) for t in (eager, compiled))
        assert largest_difference(a, b) < 1e-4


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether calls of it go through torch.compile."""
    return module._compiled_call_impl is not None
