"""Estimators in the trainer: groups of replies, roles left out, the original's defects."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import (
    PROMPTS,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
    toy_tokenizer,
)
from _ppo import SGD, experience_of, gradients

from cores.config import CoatiSection
from cores.training.ppo import save_roles, shown

ESTIMATORS: dict[str, dict[str, Any]] = {
    "gae": {},
    "coati": {},
    "grpo": {"samples_per_prompt": 2, "kl_in": "loss", "kl_kind": "k3"},
    "rloo": {"samples_per_prompt": 2},
    "reinforce_pp": {},
}
EACH = pytest.mark.parametrize("name", ESTIMATORS)


def trainer_of(name: str, **ppo: Any) -> Any:
    return make_trainer("gpt2", **{"estimator": name, **ESTIMATORS[name], **ppo})


def switches(**on: bool) -> CoatiSection:
    """Defects of the original: all off but these."""
    off = dict.fromkeys(("reversed_kl", "mean_over_positions", "r_minus_v", "same_prompts"), False)
    return CoatiSection(**{**off, **on})


@EACH
def test_without_a_learning_rate_the_ratio_stays_one(name: str) -> None:
    """Invariant 9: ratio 1, clip fraction 0, KL 0 in every minibatch of every epoch; values too
    have not moved, whatever the micro-batches."""
    rates = {"actor_learning_rate": 0.0, "critic_learning_rate": 0.0}
    trainer = trainer_of(name, **rates, epochs=2, minibatch_size=2, microbatch_size=1)
    e = trainer.estimate(trainer.score(fixed_rollout()))
    for stats in trainer.update(e):
        assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
        assert stats["ratio_max"] == pytest.approx(1.0, abs=1e-5)
        assert stats["clip_fraction"] == stats.get("value_clip_fraction", 0) == 0
        assert abs(stats["approx_kl"]) < 1e-9


@EACH
def test_advantages_of_zero_leave_the_actor_alone(name: str) -> None:
    """Invariant 11: the policy gradient is exactly 0 (grpo's own price of KL apart)."""
    trainer = trainer_of(name, kl_in="reward")
    e = experience_of(trainer)
    stats = trainer.optimize(replace(e, advantages=e.advantages * 0), torch.arange(8))
    assert stats["actor_grad_norm"] == 0


@EACH
def test_critic_only_where_needed(name: str, tmp_path: Path) -> None:
    """No critic is built, trained, logged or saved without need."""
    trainer = trainer_of(name)
    wanted = name in ("gae", "coati")
    assert (trainer.roles.critic is not None) == wanted
    assert [role.name for role in trainer.roles.trained] == ["actor", "critic"][: 1 + wanted]
    prompts = PROMPTS[: 4 // trainer.config.samples_per_prompt]
    e, stats = trainer.step(prompts)
    about = {"explained_variance", "value_loss", "value_error", "critic_grad_norm"}
    assert about <= stats.keys() if wanted else not about & stats.keys()
    assert bool(e.values.any()) == wanted
    assert "score" in shown({**stats, "tokens_per_second": 1.0})
    save_roles(trainer, toy_tokenizer(), tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "critic").exists() == wanted


def test_replies_to_one_prompt_are_rows_in_a_row() -> None:
    """Each prompt comes `samples_per_prompt` times in a row, with replies of its own, and reward
    functions are told of it as often."""
    trainer = trainer_of("rloo", samples_per_prompt=3, batch_size=6, minibatch_size=6)
    told: list[Any] = []
    score = trainer.score
    trainer.score = lambda rollout, rows, **_: (told.extend(rows), score(rollout))[1]
    e, _ = trainer.step(PROMPTS[:2], [{"row": 0}, {"row": 1}])
    width = e.response_mask.shape[1]
    prompts = [
        ids[:-width][mask[:-width]].tolist() for ids, mask in zip(e.ids, e.mask, strict=True)
    ]
    assert prompts == [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3
    assert len({tuple(ids) for ids in e.ids.tolist()}) == 6
    assert told == [{"row": 0}] * 3 + [{"row": 1}] * 3


@pytest.mark.parametrize("std", [True, False])
def test_grpo_by_hand(std: bool) -> None:
    """Scores less their prompt's mean, over their deviation or not, KL priced in; not whitened."""
    ppo = {"group_std": std, "kl_in": "reward", "kl_kind": "k1", "kl_coef": 0.5}
    trainer = trainer_of("grpo", missing_eos_penalty=0.25, **ppo)
    scored = trainer.score(fixed_rollout())
    scored = replace(scored, ref_logprobs=scored.logprobs - 0.1)
    lengths = scored.response_mask.sum(dim=1)
    total = scored.scores.clamp(-5, 5) - 0.5 * 0.1 * lengths - torch.where(scored.ended, 0, 0.25)
    pairs = total.view(2, 2)
    expected = pairs - pairs.mean(dim=1, keepdim=True)
    if std:
        expected = expected / expected.abs()  # of two, each is one deviation from their mean
    expected = torch.where(scored.response_mask, expected.view(4, 1), 0.0)
    torch.testing.assert_close(trainer.estimate(scored).advantages, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("asked", [None, True, False])
@EACH
def test_what_is_whitened(name: str, asked: bool | None) -> None:
    """Invariant 19: unless told otherwise gae and reinforce_pp alone."""
    trainer = trainer_of(name, whiten_advantages=asked)
    scored = trainer.score(fixed_rollout())
    e = trainer.estimate(replace(scored, ref_logprobs=scored.logprobs - 0.3))
    valid = e.advantages[e.response_mask]
    white = valid.mean().abs() < 1e-5 and abs(valid.var(correction=0) - 1) < 1e-4
    assert bool(white) == (name in ("gae", "reinforce_pp") if asked is None else asked)


def test_a_critic_from_zero() -> None:
    """All values are 0 at the start, and then learn; its trunk is stage 1's."""
    trainer = make_trainer("gpt2", critic_init="zero", microbatch_size=3)
    scored = trainer.score(fixed_rollout())
    assert not scored.values.any()
    assert scored.scores.all()
    actor, critic = (r.unwrapped.model.transformer for r in trainer.roles.trained)
    assert largest_difference(parameters(actor), parameters(critic)) == 0
    trainer.update(trainer.estimate(scored))
    assert trainer.score(fixed_rollout()).values.abs().max() > 1e-4


@pytest.mark.parametrize("on", [True, False])
def test_coati_reads_all_positions(on: bool) -> None:
    """Scores and values: means over the row's own positions but its last with the defect, else the
    last token's and that of the state before the first; the same in any micro-batches."""
    rollout, found = fixed_rollout(8), []
    for micro in (1, 3, 8):
        coati = switches(mean_over_positions=on, r_minus_v=True)
        trainer = trainer_of("coati", coati=coati, microbatch_size=micro, **SGD)
        scored = trainer.score(rollout)
        with torch.no_grad():
            judged = trainer.roles.reward(rollout.ids, rollout.mask)
        width = rollout.response_mask.shape[1]
        last = torch.tensor([m.nonzero().max() for m in rollout.mask])
        rows = zip(judged, rollout.mask, strict=True)
        mean = torch.stack([row[mask][:-1].mean() for row, mask in rows])
        score = mean if on else judged[torch.arange(8), last]
        value = mean if on else judged[:, -width - 1]
        torch.testing.assert_close(scored.scores, score, atol=1e-5, rtol=1e-5)
        values = value[:, None].expand(8, width)[rollout.response_mask]
        torch.testing.assert_close(
            scored.values[rollout.response_mask], values, atol=1e-5, rtol=1e-5
        )
        found.append(gradients(trainer, experience_of(trainer), "critic")[0])
    for again in found[1:]:
        assert largest_difference(found[0], again) < 1e-5


def test_coati_by_hand() -> None:
    """R = score - coef * mean k3 at the last token, A = R - V at every token, not whitened, and the
    losses are means over replies."""
    ppo = {"kl_coef": 0.5, "missing_eos_penalty": 0.0, "reward_clip": 0.0}
    trainer = trainer_of("coati", coati=switches(r_minus_v=True), **ppo)
    scored = trainer.score(fixed_rollout())
    scored = replace(scored, ref_logprobs=scored.logprobs - 1.0)
    e, mask = trainer.estimate(scored), scored.response_mask
    total = scored.scores - 0.5 * (torch.tensor(-1.0).exp() - 1 + 1)
    torch.testing.assert_close(e.rewards.sum(dim=1), total)
    torch.testing.assert_close(e.advantages, torch.where(mask, total[:, None] - scored.values, 0.0))
    torch.testing.assert_close(e.returns, torch.where(mask, total[:, None], 0.0))
    stats = trainer.optimize(e, torch.arange(4))
    means = [-row[m].mean().item() for row, m in zip(e.advantages, mask, strict=True)]
    assert stats["policy_loss"] == pytest.approx(sum(means) / 4, rel=1e-4)
    swapped = trainer_of("coati", coati=switches(reversed_kl=True, r_minus_v=True), **ppo)
    total = scored.scores - 0.5 * (torch.tensor(1.0).exp() - 1 - 1)
    torch.testing.assert_close(swapped.estimate(scored).rewards.sum(dim=1), total)
