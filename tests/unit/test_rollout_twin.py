"""The engine samples from the trainer's weights as they are now, whatever holds them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _engines import BOTH, CAPTURABLE, ENGINES, engine, sample
from _models import (
    LAUNCH,
    LORA,
    PAD,
    PROMPTS,
    causal,
    classifier,
    fixed_rollout,
    make_trainer,
    parents,
    policy_of,
    ppo_config,
    toy_tokenizer,
)
from torch import nn

from cores.config import ModelSection
from cores.models import Actor, save_model
from cores.ppo import build_roles
from cores.rollout import Rollout
from cores.rollout.graph.buffers import StaticCache
from cores.rollout.graph.engine import Twin
from cores.runtime.parents import Parent
from cores.training.ppo import build_trainer


def gap(trainer: Any) -> float:
    """Largest difference between log-probs as recorded now and as the trainer computes them."""
    scored = trainer.score(trainer.rollout(PROMPTS * 2))
    valid = scored.response_mask
    return (scored.rollout_logprobs - scored.logprobs)[valid].abs().max().item()


@pytest.mark.parametrize("way", ["full", "lora", "checkpointing"])
@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_rollout_weights_are_the_trainers(name: str, kind: str, way: str) -> None:
    """Invariant 29: after an update the engine samples from the updated weights, adapters and all:
    recorded log-probs are again the actor's own, and they have moved. That the adapters were off
    for the reference in between changes nothing."""
    options: dict[str, Any] = {} if way == "full" else {"lora": LORA}
    trainer = make_trainer(
        kind, None, way == "checkpointing", actor_learning_rate=0.05, engine=name, **options
    )
    assert type(trainer.engine) is ENGINES[name]
    first, _ = trainer.step(PROMPTS)
    assert gap(trainer) < 1e-5
    again = trainer.score(
        Rollout(first.ids, first.mask, first.response_mask, first.rollout_logprobs, first.ended)
    )
    moved = (again.logprobs - first.logprobs)[first.response_mask].abs()
    assert moved.max() > 1e-2
    trainer.step(PROMPTS)
    assert gap(trainer) < 1e-5
    assert toy_tokenizer().pad_token_id == trainer.engine.sampling.pad_id == PAD


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_adapters_are_on_while_the_reference_has_them_off(autocast: torch.dtype | None) -> None:
    """Invariant 10: the twin has switches of its own."""
    trainer = make_trainer("llama", engine="graph", lora=LORA, actor_learning_rate=0.05)
    trainer.step(PROMPTS)
    policy = trainer.roles.actor.unwrapped.model
    made = engine("graph", policy.get_base_model(), autocast=autocast)
    expected = sample(made, PROMPTS)
    with policy.disable_adapter():
        found = sample(made, PROMPTS)
        base = sample(engine("hf", policy.get_base_model(), autocast=autocast), PROMPTS)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.logprobs, expected.logprobs)
    assert base.logprobs[0, 0] != expected.logprobs[0, 0]


def bf16_gap(model: Any, rollout: Rollout) -> float:
    """Mean difference from the actor's log-probs under autocast."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = Actor(model, 1.0)(rollout.ids, rollout.mask, rollout.logprobs.shape[1])
    return (logprobs - rollout.logprobs)[rollout.response_mask].abs().mean().item()


@pytest.mark.parametrize("kind", CAPTURABLE)
@pytest.mark.parametrize("anew", [False, True])
def test_rounded_weights_are_rounded_anew(kind: str, anew: bool) -> None:
    """Invariant 29: under bfloat16 autocast too: changed in place, or put into other memory, as a
    sharded optimizer does when it starts."""
    model = policy_of(kind)
    made = engine("graph", model, autocast=torch.bfloat16)
    assert bf16_gap(model, sample(made, PROMPTS * 4)) < 0.05
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            new = p + 0.1 * torch.randn_like(p)
            if anew:
                p.data = new
            else:
                p.copy_(new)
    stale = engine("hf", policy_of(kind), autocast=torch.bfloat16)
    assert bf16_gap(model, sample(stale, PROMPTS * 4)) > 0.1
    assert bf16_gap(model, sample(made, PROMPTS * 4)) < 0.05


@pytest.mark.parametrize("kind", CAPTURABLE)
def test_the_twin_shares_what_it_can(kind: str) -> None:
    """In fp32 every weight is the trainer's own tensor; under autocast those of linear layers are
    copies in bfloat16, of fp32 weights alone. The trainer's model is as it was."""
    model = policy_of(kind)
    before = model.config._attn_implementation
    modes = [module.training for module in model.train().modules()]
    plain = Twin(model, autocast=None)
    theirs = {id(p) for p in model.parameters()}
    assert {id(p) for p in plain.model.parameters()} == theirs
    layers = [m for m in model.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    with torch.no_grad():
        layers[0].weight.data = layers[0].weight.bfloat16()
    rounded = Twin(model, autocast=torch.bfloat16)
    copied = [p for p in rounded.model.parameters() if id(p) not in theirs]
    assert len({id(p) for p in copied}) == len(copied) == len(rounded.copies)
    assert len(copied) == sum(len(list(m.parameters())) for m in layers) - 1
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in copied)
    tables = [m for m in rounded.model.modules() if isinstance(m, nn.Embedding | nn.LayerNorm)]
    assert all(p.dtype == torch.float32 for m in tables for p in m.parameters())
    assert [module.training for module in model.modules()] == modes
    assert not any(module.training for module in rounded.model.modules())
    assert model.config._attn_implementation == before
    assert all(p.requires_grad for p in model.parameters())


def test_one_step_under_autocast_is_the_models() -> None:
    """Logits of a prefill are those of the model itself under autocast, bit for bit: weights are
    rounded once instead of at every use, to the same numbers."""
    model, ids = policy_of("llama"), torch.tensor([[5, 9, 13, 20]])
    twin = Twin(model, autocast=torch.bfloat16)
    twin.refresh()
    cache = StaticCache(model.config, 1, 64, torch.bfloat16, ids.device)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = twin(ids, torch.arange(4)[None], cache)
        expected = model(ids).logits[:, -1]
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("first", ["rollout", "score"])
@pytest.mark.parametrize("how", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_frozen_bases_in_few_bits(kind: str, how: Any, first: str, tmp_path: Path) -> None:
    """Invariants 1, 29: the weights of an 8-bit layer move to its state at its first use, which may
    be the twin's or the trainer's; both have them. (Rounding to 8 bits makes small differences
    larger; with a layer that lost its weights they are 4 and more.)"""
    pytest.importorskip("bitsandbytes")
    wide = {"n_embd": 64} if kind == "gpt2" else {"hidden_size": 64, "intermediate_size": 128}
    save_model(causal(kind, **wide), toy_tokenizer(), tmp_path / "sft")
    save_model(classifier(kind, **wide), toy_tokenizer(), tmp_path / "reward")
    folders = {role: Parent(role, tmp_path / role, {}) for role in parents(kind)}
    config = replace(ppo_config(engine="graph", lora=LORA), model=ModelSection(quantization=how))
    roles = build_roles(config, toy_tokenizer(), folders, LAUNCH)
    trainer = build_trainer(config, roles, toy_tokenizer(), LAUNCH)
    if first == "score":
        trainer.score(fixed_rollout())
    bound = 0.5 if how == "8bit" else 1e-4
    assert gap(trainer) < bound
    trainer.step(PROMPTS)
    assert gap(trainer) < bound
