"""Frozen weights in bf16: the same bits under autocast, what is held so and what is not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import (
    FAMILIES,
    KINDS,
    LAUNCH,
    LORA,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
    parents,
    policy_of,
    ppo_config,
    reward_folder,
    scalar_of,
    toy_tokenizer,
)
from torch import Tensor

from cores.config import Config, ModelSection
from cores.config.validate import check
from cores.errors import UserError
from cores.models import Actor, ScalarModel, load_scalar
from cores.models.adapters import check_quantization, hold_linears
from cores.ppo import build_roles
from cores.training.ppo import build_trainer

BF16 = replace(LAUNCH, precision="bf16")
HELD = ModelSection(precision="bf16", quantization="bf16")


@torch.no_grad()
def outputs(model: Any) -> tuple[Tensor, ...]:
    """Log-probs and entropy, or values, under bf16 autocast."""
    made = fixed_rollout()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if isinstance(model, ScalarModel):
            return (model(made.ids, made.mask),)
        return Actor(model, 0.7)(made.ids, made.mask, 6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_outputs_are_the_same_bits(kind: str) -> None:
    """Invariant 4: what autocast rounds at each use may be rounded before; heads tied to the
    embeddings too, which themselves stay in fp32, like everything that is no linear layer."""
    policy, scalar = policy_of(kind), scalar_of(kind)
    before = [*outputs(policy), *outputs(ScalarModel(scalar))]
    embeddings = policy.get_input_embeddings().weight.clone()
    bytes_before = size(policy)
    hold_linears(policy, torch.bfloat16)
    hold_linears(scalar, torch.bfloat16)
    after = [*outputs(policy), *outputs(ScalarModel(scalar))]
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(policy.get_input_embeddings().weight, embeddings)
    assert scalar.score.weight.dtype == torch.float32
    matrices = [n for n, p in policy.named_parameters() if p.ndim == 2 and is_linear(n)]
    held = {n for n, p in policy.named_parameters() if p.dtype == torch.bfloat16}
    assert held == set(matrices)
    assert size(policy) < 0.75 * bytes_before


def is_linear(name: str) -> bool:
    return not any(part in name for part in ("wte", "wpe", "embed", "word_embeddings"))


def size(model: Any) -> int:
    return sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_reference_and_reward_are_held_so_in_bf16(kind: str) -> None:
    """Invariant 10: KL 0 at the start still, though actor and reference hold other bytes; scores
    are those of the reward model as it was. In fp32 nothing is rounded."""
    config = replace(ppo_config(), model=ModelSection(precision="bf16"))
    roles = build_roles(config, toy_tokenizer(), parents(kind), BF16)
    dtypes = [
        {p.dtype for p in module.parameters()} for module in (roles.frozen_actor, roles.reward)
    ]
    assert dtypes == [{torch.float32, torch.bfloat16}] * 2
    assert {p.dtype for p in roles.actor.module.parameters()} == {torch.float32}
    trainer = build_trainer(config, roles, toy_tokenizer(), BF16)
    scored = trainer.score(fixed_rollout())
    assert torch.equal(scored.logprobs, scored.ref_logprobs)
    made = fixed_rollout()
    trainer.packed = False  # bf16 rounds differently side by side
    whole = ScalarModel(load_scalar(reward_folder(kind)))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(trainer.score(made).scores, whole.scores(made.ids, made.mask))
    plain = make_trainer(kind).roles
    frozen = [*plain.frozen_actor.parameters(), *plain.reward.parameters()]
    assert {p.dtype for p in frozen} == {torch.float32}


@torch.no_grad()
def redraw_adapters(roles: Any) -> None:
    """peft draws them in the precision of the layer, and here the same ones are wanted."""
    for role in (roles.actor, roles.critic):
        for name, parameter in role.module.named_parameters():
            if "lora_A" in name:
                parameter.normal_()


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_the_same_on_it(kind: str) -> None:
    """Invariants 9, 10: with the bases held in bf16 scores, log-probs and the adapters after an
    update are the same bits as under autocast alone; adapters and score head are in fp32."""
    found = []
    for quantization in ("none", "bf16"):
        model = replace(HELD, quantization=quantization)
        config = replace(ppo_config(lora=LORA), model=model)
        torch.manual_seed(0)
        roles = build_roles(config, toy_tokenizer(), parents(kind), BF16)
        redraw_adapters(roles)
        trainer = build_trainer(config, roles, toy_tokenizer(), BF16)
        scored = trainer.score(fixed_rollout())
        trainer.update(trainer.estimate(scored))
        both = {}
        for role in (roles.actor, roles.critic):
            trained = [p for p in role.module.parameters() if p.requires_grad]
            assert {p.dtype for p in trained} == {torch.float32}
            named = parameters(role.module).items()
            both |= {role.name + n: p for n, p in named if "lora_" in n or "score" in n}
        held = [p for p in roles.actor.module.parameters() if p.dtype == torch.bfloat16]
        assert bool(held) == (quantization == "bf16")
        found.append((scored, both))
    (plain, weights), (scored, same) = found
    for name in ("logprobs", "ref_logprobs", "values", "scores"):
        assert torch.equal(getattr(plain, name), getattr(scored, name))
    assert largest_difference(weights, same) == 0


def test_what_cannot_be_held_so_is_refused() -> None:
    """It needs computing in bf16 and adapters, no bitsandbytes, and cannot be sharded."""
    problems = dict(check(Config(model=replace(HELD, precision="fp32"))))
    assert "set model.precision bf16" in problems["model.quantization"]
    assert "model.quantization" not in dict(check(Config(model=HELD)))
    cpu = torch.device("cpu")
    with pytest.raises(
        UserError, match=r"held in bf16 cannot be trained, and ppo\.lora\.rank is 0"
    ):
        check_quantization(HELD, False, "ppo.lora", 0, cpu)
    with pytest.raises(UserError, match="weights in bf16 cannot be shards"):
        check_quantization(HELD, True, "ppo.lora", 3, cpu)
    check_quantization(HELD, True, "ppo.lora", 2, cpu)
