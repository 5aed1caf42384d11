"""Where stage 3 starts: policy = reference, critic = reward model, nothing random inside."""

import hashlib
from typing import Any

import pytest
import torch
from _models import (
    KINDS,
    LORA,
    PROMPTS,
    adam,
    causal,
    fixed_rollout,
    make_trainer,
    parameters,
    scalar_of,
)

from cores.models.actor import plain_model
from cores.ppo.experience import describe
from cores.rl import kl_estimate

ADAPTERS = [0, 4]
ENGINES = ["auto", "hf"]


def trainer_with(kind: str, rank: int, **ppo: Any) -> Any:
    return make_trainer(kind, lora=type(LORA)(rank=rank), **ppo)


def base_bytes(model: Any) -> str:
    """sha256 of every weight that is no adapter and no trained copy of the head."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        if "lora_" not in name and "modules_to_save" not in name:
            digest.update(name.encode() + p.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rank", ADAPTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_minibatch_has_ratio_one(kind: str, rank: int, engine: str) -> None:
    """Invariant 9: ratio 1, clip fraction 0, approximate KL 0 in the first minibatch, whatever
    the micro-batches of scoring and updating are."""
    sizes = {"microbatch_size": 3, "minibatch_size": 2, "batch_size": 4}
    trainer = trainer_with(kind, rank, engine=engine, **sizes)
    scored = trainer.score(trainer.rollout(PROMPTS))
    stats = trainer.optimize(trainer.estimate(scored), torch.tensor([3, 1]))
    assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert stats["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert stats["clip_fraction"] == 0
    assert abs(stats["approx_kl"]) < 1e-9
    assert stats["value_clip_fraction"] == 0
    second = trainer.optimize(trainer.estimate(scored), torch.tensor([3, 1]))
    assert second["approx_kl"] > 1e-9  # the first step moved the policy


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_learning_rate_the_ratio_stays_one(kind: str, engine: str) -> None:
    """Invariant 9: with lr = 0 it is 1 in all epochs, and no weight moves."""
    still = {"actor_learning_rate": 0.0, "critic_learning_rate": 0.0}
    trainer = make_trainer(kind, engine=engine, epochs=3, minibatch_size=2, **still)
    before = parameters(trainer.roles.actor.module), parameters(trainer.roles.critic.module)
    experience = trainer.estimate(trainer.score(trainer.rollout(PROMPTS)))
    steps = trainer.update(experience)
    assert len(steps) == 6
    for stats in steps:
        assert stats["ratio_max"] == pytest.approx(1.0, abs=1e-5)
        assert stats["clip_fraction"] == stats["value_clip_fraction"] == 0
        assert abs(stats["approx_kl"]) < 1e-9
        assert stats["actor_grad_norm"] > 0
    for was, role in zip(before, (trainer.roles.actor, trainer.roles.critic), strict=True):
        assert all(torch.equal(was[n], p) for n, p in role.module.named_parameters())


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
@pytest.mark.parametrize("rank", ADAPTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_kl_from_the_reference_starts_at_zero(kind: str, rank: int, temperature: float) -> None:
    """Invariants 2, 10: actor and reference agree at the start at every temperature, and with the
    engine's own log-probs; after an update they no longer do."""
    trainer = trainer_with(kind, rank, temperature=temperature, actor_learning_rate=0.02)
    scored = trainer.score(trainer.rollout(PROMPTS))
    valid = scored.response_mask
    for kl in ("k1", "k2", "k3"):
        kl_now = kl_estimate(scored.logprobs, scored.ref_logprobs, kl, valid)
        assert kl_now.abs().max() < 1e-5
    assert (scored.rollout_logprobs - scored.ref_logprobs)[valid].abs().max() < 1e-5
    experience = trainer.estimate(scored)
    assert describe(experience, [], critic=True)["rollout_logprob_gap"] < 1e-5
    trainer.update(experience)
    again = trainer.score(trainer.rollout(PROMPTS))
    moved = (again.logprobs - again.ref_logprobs)[again.response_mask].abs()
    assert moved.max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_reference_is_the_base_and_the_base_stays(kind: str) -> None:
    """Invariants 10, 29: adapters off = the stage-1 logits before and after an update; the base
    weights' bytes do not change; the engine samples with the adapters on."""
    trainer = trainer_with(kind, 4, actor_learning_rate=0.05, critic_learning_rate=0.05)
    actor, critic = trainer.roles.actor.unwrapped, trainer.roles.critic.unwrapped
    before = base_bytes(actor.model), base_bytes(critic.model)
    experience, _ = trainer.step(PROMPTS)
    assert (base_bytes(actor.model), base_bytes(critic.model)) == before
    raw = causal(kind)
    ids = torch.tensor([[5, 9, 13, 20, 21]])
    allowed = torch.arange(1, 60)
    with torch.no_grad(), actor.model.disable_adapter():
        off = actor.model(ids).logits[..., allowed]
    torch.testing.assert_close(off, raw(ids).logits[..., allowed], atol=1e-5, rtol=1e-5)
    again = trainer.score(
        type(fixed_rollout())(
            experience.ids,
            experience.mask,
            experience.response_mask,
            experience.rollout_logprobs,
            experience.ended,
        )
    )
    valid = experience.response_mask
    torch.testing.assert_close(again.ref_logprobs[valid], experience.ref_logprobs[valid])
    assert (again.logprobs - experience.logprobs)[valid].abs().max() > 1e-3
    scored = trainer.score(trainer.rollout(PROMPTS))
    valid = scored.response_mask
    torch.testing.assert_close(
        scored.rollout_logprobs[valid], scored.logprobs[valid], atol=1e-5, rtol=1e-5
    )
    assert (scored.logprobs - scored.ref_logprobs)[valid].abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_should_be_trained_is(kind: str) -> None:
    """Invariant 10: the reference and the reward model have no gradient and do not move; with
    adapters only they and the critic's head move."""
    trainer = make_trainer(kind)
    frozen = trainer.roles.frozen_actor, trainer.roles.reward
    before = [parameters(m) for m in frozen]
    trainer.step(PROMPTS)
    for module, was in zip(frozen, before, strict=True):
        assert not any(p.requires_grad for p in module.parameters())
        assert not module.training
        assert all(torch.equal(was[n], p) for n, p in module.named_parameters())
    trainer = trainer_with(kind, 4)
    assert trainer.roles.frozen_actor is None
    for role in (trainer.roles.actor, trainer.roles.critic):
        names = [n for n, p in role.module.named_parameters() if p.requires_grad]
        assert names
        assert all("lora_" in n or "modules_to_save" in n for n in names)


@pytest.mark.parametrize("rank", ADAPTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_critic_starts_from_the_reward_model(kind: str, rank: int) -> None:
    """Invariants 12, 25: the same numbers at every token, the mean included; the score is the
    value at the last token, and the stock logit less the mean."""
    trainer = trainer_with(kind, rank)
    rollout = fixed_rollout()
    scored = trainer.score(rollout)
    roles = trainer.roles
    with torch.no_grad():
        values = roles.critic.module(rollout.ids, rollout.mask)
        torch.testing.assert_close(values, roles.reward(rollout.ids, rollout.mask))
        stock = scalar_of(kind).eval()
        for i in range(4):
            logit = stock(input_ids=torch.tensor([rollout.row(i)])).logits.item()
            assert scored.scores[i].item() == pytest.approx(logit - 0.75, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_base_for_reward_model_and_critic(kind: str) -> None:
    """Invariants 10, 12: with adapters the reward model is the critic as it began, whatever the
    critic has learned since, its head included; one that began otherwise leaves it a base of its
    own, and so does training in full."""
    trainer, made = trainer_with(kind, 4), fixed_rollout()
    assert not isinstance(trainer.roles.reward, torch.nn.Module)
    whole = trainer_with(kind, 0)
    assert isinstance(whole.roles.reward, torch.nn.Module)
    expected = whole.score(made).scores
    for _ in range(2):
        trainer.step(PROMPTS)
    scored = trainer.score(made)
    torch.testing.assert_close(scored.scores, expected, atol=1e-6, rtol=1e-6)
    critic = trainer.roles.critic.module
    with torch.no_grad():
        moved = critic(made.ids, made.mask) - trainer.roles.reward(made.ids, made.mask)
    assert moved[made.mask].abs().max() > 1e-3
    trained = [n for n, p in critic.named_parameters() if p.requires_grad]
    assert any("lora_" in n for n in trained)
    assert any("modules_to_save" in n for n in trained)
    zero = trainer_with(kind, 4, critic_init="zero")
    torch.testing.assert_close(zero.score(made).scores, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rank", ADAPTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_role_has_dropout(kind: str, rank: int) -> None:
    """Invariant 7: GPT-2 with dropout 0.1 in three places and Llama with attention dropout 0.1:
    every role computes the same in train mode as in eval mode."""
    trainer = trainer_with(kind, rank)
    rollout, roles = fixed_rollout(), trainer.roles
    modules = [roles.actor.module, roles.critic.module, roles.reward, roles.frozen_actor]
    found = []
    for mode in (True, False):
        for module in modules:
            if isinstance(module, torch.nn.Module):
                module.train(mode)
        found.append(trainer.score(rollout))
    for name in ("logprobs", "ref_logprobs", "values", "scores", "entropy"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name
    config = plain_model(roles.actor.unwrapped.model).config
    assert (config.attn_pdrop if kind == "gpt2" else config.attention_dropout) == 0.1


@pytest.mark.parametrize("rank", ADAPTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_works_and_changes_nothing(kind: str, rank: int) -> None:
    """Invariant 7: the same parameters after a step, and layers do run a second time in the
    backward pass of actor and critic."""
    found = []
    for checkpointing in (False, True):
        trainer = trainer_with(kind, rank, checkpointing=checkpointing, **adam(eps=1.0))
        experience = trainer.estimate(trainer.score(fixed_rollout()))
        calls: list[int] = []
        for role in (trainer.roles.actor, trainer.roles.critic):
            inner = plain_model(role.unwrapped.model).base_model
            layer = inner.h[0] if hasattr(inner, "h") else inner.layers[0]
            layer.mlp.register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
        trainer.optimize(experience, torch.arange(4))
        roles = trainer.roles
        found.append((parameters(roles.actor.module), parameters(roles.critic.module), len(calls)))
    (actor, critic, once), (actor2, critic2, twice) = found
    for mine, theirs in ((actor, actor2), (critic, critic2)):
        for name, p in mine.items():
            torch.testing.assert_close(p, theirs[name], atol=1e-6, rtol=1e-5)
    assert (once, twice) == (2, 4)
