"""The peer is told the same task as ours, and as many optimizer steps."""

from pathlib import Path

import pytest
import torch
from _models import reward_folder, scalar_of

from cores.config import parse_config
from cores.errors import UserError
from cores.models.actor import ScalarModel
from research.experiments import peer_trl
from research.experiments.peer_trl import main, optimizer_steps, parse_set, settings

DEMO = parse_config(["--config", "configs/demo.yaml", "--seed", "3"], "", "")


def test_settings_are_the_configurations() -> None:
    found = settings(DEMO, Path("out"), {})
    assert found["total_episodes"] == 2048
    assert (found["num_ppo_epochs"], found["num_mini_batches"]) == (2, 4)
    assert (found["kl_coef"], found["learning_rate"]) == (0.1, 3e-4)
    assert (found["response_length"], found["temperature"]) == (48, 1.0)
    assert found["missing_eos_penalty"] == 2.0
    assert found["seed"] == 3
    assert settings(DEMO, Path("out"), {"kl_coef": 0.2})["kl_coef"] == 0.2


def test_a_minibatch_is_an_optimizer_step_as_in_ours() -> None:
    """A step an accumulation of the whole batch would be half of ours (TRL issue 5645)."""
    found = settings(DEMO, Path("out"), {})
    assert found["gradient_accumulation_steps"] == 1
    assert found["per_device_train_batch_size"] == DEMO.ppo.batch_size
    ours = DEMO.ppo.updates * DEMO.ppo.epochs * (DEMO.ppo.batch_size // DEMO.ppo.minibatch_size)
    assert optimizer_steps(found) == ours == 128


def test_the_peer_reads_the_calibrated_score() -> None:
    """Its score at every token is ours: the head's less the mean, from the same hidden states."""
    model, ours = peer_trl.scalar(reward_folder("gpt2")), ScalarModel(scalar_of("gpt2"))
    ids = torch.tensor([[5, 9, 13, 20], [7, 8, 9, 10]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        hidden = model.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        theirs = model.score(hidden)
        assert ours.mean == 0.75
        assert theirs.shape == (2, 4, 1)
        torch.testing.assert_close(theirs[..., 0], ours(ids, mask))


def test_values_of_set_have_their_types() -> None:
    words = ["vf_coef=0.5", "adam_epsilon=1e-5", "seed=4", "lr_scheduler_type=constant", "bf16=no"]
    found = parse_set(words)
    assert found == {
        "vf_coef": 0.5,
        "adam_epsilon": 1e-5,
        "seed": 4,
        "lr_scheduler_type": "constant",
        "bf16": False,
    }
    assert isinstance(found["seed"], int)
    with pytest.raises(UserError, match="name=value"):
        parse_set(["vf_coef"])


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peer_trl, "RELEASE", "0.0.1")
    with pytest.raises(UserError, match=r"trl 0\.0\.1 is needed"):
        main(["--sft", "a", "--reward", "b", "--out", str(tmp_path / "out")])
