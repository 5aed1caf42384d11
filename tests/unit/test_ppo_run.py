"""What stage 3 checks before it runs, and what it saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _models import KINDS, LAUNCH, PROMPTS, fixed_rollout, make_trainer, ppo_config, toy_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cores.config import LoraSection
from cores.errors import UserError
from cores.models import Actor, ScalarModel, load_policy, load_scalar
from cores.models.loading import exclude_from
from cores.runtime.launch import Launch, check_batches
from cores.training.ppo import build_trainer, check_options, save_roles


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_actor_and_critic_are_the_trained_ones(kind: str, rank: int, tmp_path: Path) -> None:
    """Invariants 29, 30: after updates the saved folders give the trainer's numbers, by our
    loaders, and load as stock classes; LoRA is merged and its adapters are beside."""
    config = ppo_config(
        lora=LoraSection(rank=rank), actor_learning_rate=0.02, critic_learning_rate=0.02
    )
    trainer = make_trainer(kind, lora=config.ppo.lora, actor_learning_rate=0.02)
    trainer.step(PROMPTS)
    expected = trainer.score(fixed_rollout())
    save_roles(trainer, toy_tokenizer(), tmp_path)
    policy: Any = load_policy(tmp_path, dropout=False)
    exclude_from(policy, toy_tokenizer())
    critic = ScalarModel(load_scalar(tmp_path / "critic"))
    with torch.no_grad():
        width = expected.response_mask.shape[1]
        logprobs, _ = Actor(policy, 1.0)(expected.ids, expected.mask, width)
        values = critic(expected.ids, expected.mask)[:, -width - 1 : -1]
    mask = expected.response_mask
    torch.testing.assert_close(logprobs[mask], expected.logprobs[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values[mask], expected.values[mask], atol=1e-5, rtol=1e-5)
    assert critic.mean == 0.75
    AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    for folder in (tmp_path, tmp_path / "critic"):
        assert (folder / "adapter" / "adapter_model.safetensors").is_file() == bool(rank)
    kept = {".safetensors", ".json", ".jinja", ".md"}
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= kept


def test_batches_that_do_not_divide_over_processes() -> None:
    """Invariant 21: refused, with the key."""
    two = Launch(0, 2, torch.device("cpu"), "fp32")
    check_batches(ppo_config().ppo, two, "ppo")
    with pytest.raises(UserError, match=r"ppo\.batch_size: 3 rows do not divide over 2"):
        check_batches(ppo_config(batch_size=3, minibatch_size=3).ppo, two, "ppo")
    with pytest.raises(UserError, match=r"ppo\.minibatch_size"):
        check_batches(ppo_config(batch_size=6, minibatch_size=3).ppo, two, "ppo")


@pytest.mark.parametrize("stops", [[60], [0], [5, 1000]])
def test_stop_ids_that_cannot_stop(stops: list[int]) -> None:
    """Invariant 16: ids beyond the tokenizer, and pad, are refused; the engine gets the others."""
    with pytest.raises(UserError, match=r"ppo\.stop_token_ids"):
        check_options(ppo_config(stop_token_ids=stops), toy_tokenizer())
    roles = make_trainer("gpt2").roles
    good = build_trainer(ppo_config(stop_token_ids=[5, 59]), roles, toy_tokenizer(), LAUNCH)
    assert good.engine.sampling.stop_ids == [1, 5, 59]
