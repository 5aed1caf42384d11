"""One frozen base for the four roles of stage 3 (`ppo.lora.share_base`): only memory changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import (
    KINDS,
    LAUNCH,
    LORA,
    PROMPTS,
    ROUNDING,
    fixed_rollout,
    parameters,
    ppo_config,
    toy_tokenizer,
)
from _one_base import parents_in, trainer_of
from safetensors.torch import load_file

from cores.config import ModelSection
from cores.models.shells import frozen_sum
from cores.ppo import build_roles
from cores.run import checkpoint
from cores.training.ppo import build_trainer, save_roles


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parents of a kind."""
    return parents_in(tmp_path_factory.mktemp("stages"))


def frozen_numbers(trainer: Any) -> int:
    """Numbers in memory that no role trains, each piece of memory once; adapters' aside."""
    roles = trainer.roles
    models = [role.unwrapped for role in roles.trained]
    models += [roles.reward] if isinstance(roles.reward, torch.nn.Module) else []
    held = {
        p.data_ptr(): p.numel()
        for model in models
        for name, p in model.named_parameters()
        if not p.requires_grad and "kept_" not in name
    }
    return sum(held.values())


@pytest.mark.parametrize(
    ("kind", "how"), [("gpt2", "none"), ("llama", "bf16"), ("gpt2", "8bit"), ("llama", "4bit")]
)
def test_one_base_in_memory(kind: str, how: Any, made: Any) -> None:
    """Invariant 10: whatever holds its weights, the four roles have one base between them, whose
    bits are the same at the end, and a head each; apart there are three."""
    if how in ("8bit", "4bit"):
        pytest.importorskip("bitsandbytes")
    section = ModelSection(quantization=how, precision="fp32" if how == "none" else "bf16")
    one, apart = (trainer_of(made(kind), share, section) for share in ("true", "false"))
    base = sum(p.numel() for p in one.roles.base.parameters())
    heads = 64  # the reward model's, which the critic began with
    assert frozen_numbers(one) == base + heads
    assert frozen_numbers(apart) > 2.5 * base
    before = frozen_sum(one.roles.base)
    one.step(PROMPTS)
    assert frozen_sum(one.roles.base) == before
    one.roles.check_base()
    with torch.no_grad():
        embedding: Any = one.roles.base.get_input_embeddings()
        embedding.weight[3, 3] += 1
    with pytest.raises(RuntimeError, match="was changed"):
        one.roles.check_base()


COLUMNS = ("logprobs", "ref_logprobs", "values", "scores")


@pytest.mark.parametrize(
    ("kind", "checkpointing", "engine"),
    [("gpt2", False, "graph"), ("llama", True, "hf"), ("llama", False, "graph")],
)
def test_equal_to_roles_apart(
    kind: str, checkpointing: bool, engine: str, made: Any, tmp_path: Path
) -> None:
    """Invariants 9, 12, 29, 30: what actor and reference say is the same to the bit, and after two
    updates everything is within rounding: what all roles say, replies, and what is written."""
    options: dict[str, Any] = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3}
    both = [
        trainer_of(
            made(kind), share, checkpointing=checkpointing, engine=engine, **options, **ROUNDING
        )
        for share in ("auto", "false")
    ]
    found = [trainer.score(fixed_rollout()) for trainer in both]
    for name in ("logprobs", "ref_logprobs"):
        assert torch.equal(*(getattr(each, name) for each in found)), name
    start = found[0]
    for _ in range(2):
        made_ids = [trainer.step(PROMPTS)[0].ids for trainer in both]
        assert torch.equal(*made_ids)
    found = [trainer.score(fixed_rollout()) for trainer in both]
    for name in COLUMNS:
        one, apart = (getattr(each, name) for each in found)
        torch.testing.assert_close(one, apart, atol=1e-4, rtol=1e-4)
        moved = (one - getattr(start, name)).abs().max()
        assert moved > 1e-3 if name in ("logprobs", "values") else moved < 1e-5
    for trainer, place in zip(both, ("one", "apart"), strict=True):
        trainer.config = replace(trainer.config, lora=replace(LORA, merge=False))
        save_roles(trainer, toy_tokenizer(), tmp_path / place)
    for part in ("", "critic"):
        files = [
            sorted(p.name for p in (tmp_path / w / part).rglob("*") if p.is_file())
            for w in ("one", "apart")
        ]
        assert files[0] == files[1]
        for name in ("config.json", "adapter/adapter_config.json"):
            one, apart = ((tmp_path / w / part / name).read_text() for w in ("one", "apart"))
            assert one == apart, name
        weights = [
            load_file(tmp_path / w / part / "adapter/adapter_model.safetensors")
            for w in ("one", "apart")
        ]
        assert weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, weights[1][name], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_made_again_as_they_were(kind: str, made: Any) -> None:
    """Invariants 10, 12: passes of actor and critic open at a time, and all roles scoring before
    checkpointed layers are made again: each role's gradients are those that it has alone."""
    rows = fixed_rollout()
    width = rows.response_mask.shape[1]

    def gradients(amid: bool) -> list[dict[str, Any]]:
        trainer = trainer_of(made(kind), "true", checkpointing=amid)
        actor, critic = modules = [role.unwrapped for role in trainer.roles.trained]
        torch.manual_seed(7)
        with torch.no_grad():
            for name, p in (each for module in modules for each in module.named_parameters()):
                if "lora_B" in name:
                    p.normal_(std=0.2)
        passes = [
            lambda: actor(rows.ids, rows.mask, width)[0].sum(),
            lambda: critic(rows.ids, rows.mask).sum(),
        ]
        if amid:
            losses = [each() for each in passes]
            trainer.score(rows)
            for loss in losses:
                loss.backward()
        else:
            for each in passes:
                each().backward()
        return [
            {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
            for module in modules
        ]

    for amid, alone in zip(gradients(True), gradients(False), strict=True):
        assert max(gradient.abs().max() for gradient in alone.values()) > 1e-3
        for name, gradient in alone.items():
            apart = (amid[name] - gradient).abs().max()
            assert apart <= 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize(
    "options", [{"critic_init": "zero"}, {"estimator": "rloo", "samples_per_prompt": 2}]
)
def test_roles_that_begin_otherwise(options: dict[str, Any], made: Any) -> None:
    """Invariant 12: a critic of zeros beside the reward model, each with modules of its own, or no
    critic at all."""
    one, apart = (
        trainer_of(made("llama"), share, **options, **ROUNDING) for share in ("true", "false")
    )
    assert isinstance(one.roles.reward, torch.nn.Module)
    heads = 64 * (2 if "critic_init" in options else 1)  # of the reward model, of the critic
    assert frozen_numbers(one) == sum(p.numel() for p in one.roles.base.parameters()) + heads
    before = parameters(one.roles.reward)
    for _ in range(2):
        for trainer in (one, apart):
            trainer.step(PROMPTS[: 4 // trainer.config.samples_per_prompt])
    found = [trainer.score(fixed_rollout()) for trainer in (one, apart)]
    for name in COLUMNS:
        values = [getattr(each, name) for each in found]
        torch.testing.assert_close(*values, atol=2e-5, rtol=2e-5)
    assert all(torch.equal(before[n], p) for n, p in one.roles.reward.named_parameters())


def test_it_goes_on_to_the_bit(made: Any, tmp_path: Path) -> None:
    """Invariant 26: a checkpoint holds what is trained alone, and a run goes on from it as if it
    had not stopped."""
    whole, parts = (trainer_of(made("gpt2"), "true") for _ in range(2))
    for _ in range(3):
        whole.step(PROMPTS)
    parts.step(PROMPTS)
    checkpoint.write(tmp_path, 1, parts.state_dict())
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    assert all("lora_" in n or "score" in n for n in saved.tensors("actor.weights").names)
    config = ppo_config(lora=replace(LORA, share_base="true"))
    roles = build_roles(config, toy_tokenizer(), made("gpt2"), LAUNCH, saved)
    again = build_trainer(config, roles, toy_tokenizer(), LAUNCH)
    again.load_state_dict(saved)
    for _ in range(2):
        again.step(PROMPTS)
    for role, other in zip(whole.roles.trained, again.roles.trained, strict=True):
        for name, parameter in role.unwrapped.named_parameters():
            assert torch.equal(parameter, dict(other.unwrapped.named_parameters())[name]), name
