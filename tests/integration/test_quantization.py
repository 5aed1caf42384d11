"""Frozen bases in 8 and 4 bits: what is refused and what quantised; adapters train on them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import (
    KINDS,
    LAUNCH,
    ROWS,
    WORDS,
    causal,
    classifier,
    fixed_rollout,
    largest_difference,
    model_config,
    parameters,
    ppo_config,
    toy_tokenizer,
)
from peft import TaskType
from transformers import AutoModelForCausalLM, CLIPConfig

from cores.config import Config, LoraSection, ModelSection
from cores.config.validate import check
from cores.errors import UserError
from cores.models import add_lora, load_policy, load_scalar, save_model
from cores.models.adapters import check_quantization
from cores.models.bases import load_base
from cores.models.loading import exclude_from
from cores.models.vocabulary import rounded
from cores.ppo import build_roles
from cores.runtime.parents import Parent
from cores.training.ppo import build_trainer

WAYS = ("8bit", "4bit")
WIDE: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 64},
    "llama": {"hidden_size": 64, "intermediate_size": 128},
}
STORED = {"8bit": torch.int8, "4bit": torch.uint8}
CPU = torch.device("cpu")
LORA = LoraSection(rank=4)
IDS = torch.tensor([[5, 9, 13, 20, 33]])


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stage-1 models as wide as 4 bits need on a CPU."""
    folders = {kind: tmp_path_factory.mktemp("sft") / kind for kind in KINDS}
    for kind, folder in folders.items():
        save_model(causal(kind, **WIDE[kind]), toy_tokenizer(), folder)
    return folders


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stage-2 models of the same widths."""
    folders = {kind: tmp_path_factory.mktemp("reward") / kind for kind in KINDS}
    for kind, folder in folders.items():
        save_model(classifier(kind, **WIDE[kind]), toy_tokenizer(), folder)
    return folders


def section(how: Any, **changes: Any) -> ModelSection:
    """A model section that asks for `how`."""
    return ModelSection(quantization=how, **changes)


def logits_of(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Logits in evaluation mode."""
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.clone()


def test_the_package_is_asked_for_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without bitsandbytes the arguments are refused, with the command that installs it."""
    monkeypatch.setattr("cores.config.validate.find_spec", lambda name: None)
    found = dict(check(Config(model=section("4bit"))))
    assert "pip install bitsandbytes" in found["model.quantization"]
    assert "model.quantization" not in dict(check(Config()))
    monkeypatch.setattr("cores.config.validate.find_spec", lambda name: object())
    assert "model.quantization" not in dict(check(Config(model=section("4bit"))))


def test_full_fine_tuning_and_zero_3_are_refused() -> None:
    """A base in few bits is never trained, and cannot be sharded; none asks for nothing."""
    with pytest.raises(UserError, match=r"reward\.lora\.rank is 0.*Set reward\.lora\.rank"):
        check_quantization(section("8bit"), False, "reward.lora", 0, CPU)
    with pytest.raises(UserError, match="weights in 4bit cannot be shards"):
        check_quantization(section("4bit"), True, "sft.lora", 3, CPU)
    check_quantization(section("none"), False, "sft.lora", 3, CPU)


@pytest.mark.parametrize("how", WAYS)
def test_a_machine_that_cannot_is_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bitsandbytes says on a device it does not support reaches the user, with the remedy."""
    functional = pytest.importorskip("bitsandbytes").functional
    check_quantization(section(how), True, "sft.lora", 2, CPU)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no kernel for this device\nand more")

    for name in ("quantize_4bit", "int8_vectorwise_quant"):
        monkeypatch.setattr(functional, name, fail)
    with pytest.raises(UserError, match=rf"in {how} on cpu: no kernel for this device\. Run `pip"):
        check_quantization(section(how), True, "sft.lora", 2, CPU)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_body_is_quantised_and_nothing_else(
    kind: str, how: str, sft: dict[str, Path], reward: dict[str, Path]
) -> None:
    """Linear layers of the blocks are in few bits; embeddings, norms, biases and heads in fp32.
    A layer's output is near the whole one's, and not equal."""
    pytest.importorskip("bitsandbytes")
    for load, folder in ((load_policy, sft[kind]), (load_scalar, reward[kind])):
        kwargs = {"dropout": False} if load is load_policy else {}
        whole: Any = load(folder, **kwargs)
        small: Any = load(folder, frozen=section(how), **kwargs)
        found = {n for n, p in small.named_parameters() if p.dtype == STORED[how]}
        expected = {
            n for n, p in whole.named_parameters()
            if p.ndim == 2 and not any(k in n for k in ("wte", "wpe", "embed", "lm_head", "score"))
        }  # fmt: skip
        assert found == expected
        assert all(p.dtype == torch.float32 for n, p in small.named_parameters() if n not in found)
        for name in sorted(found):
            layer = name.removesuffix(".weight")
            ours, theirs = small.get_submodule(layer), whole.get_submodule(layer)
            x = torch.randn(16, ours.in_features)
            with torch.no_grad():
                error = (ours(x) - theirs(x)).norm() / theirs(x).norm()
            assert 1e-4 < error < (0.02 if how == "8bit" else 0.12)
        small.train()  # without dropout, as asked
        again = small(input_ids=IDS).logits
        torch.testing.assert_close(again, small(input_ids=IDS).logits, atol=0, rtol=0)


@pytest.mark.parametrize("load", [partial(load_policy, dropout=False), load_scalar])
def test_widths_that_cpus_read_wrongly_are_refused(load: Any, tmp_path: Path) -> None:
    """bitsandbytes on a CPU gives other weights back from 4 bits unless rows are whole blocks. It
    is refused before weights are read: there are none here, nor in 8 bits, which may be narrow."""
    model_config("gpt2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"multiple of 64 wide, and .* takes 32"):
        load(tmp_path, frozen=section("4bit"))
    with pytest.raises(UserError, match=r"its model cannot be loaded"):
        load(tmp_path, frozen=section("8bit"))
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its model cannot be loaded: .*CLIPConfig"):
        load(tmp_path, frozen=section("4bit"))


def step(model: Any, checkpointing: bool = False) -> dict[str, torch.Tensor]:
    """One gradient of the trained parameters of `model`."""
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.zero_grad()
    torch.manual_seed(4)  # dropout
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_train_on_it_and_merge_into_the_whole_base(
    kind: str, how: str, tmp_path: Path
) -> None:
    """Invariants 10, 30: adapters get fp32 gradients (checkpointed or not, also after inference),
    the base's bytes stay; what is saved is the unquantised base with the adapter merged. The base
    needs rows for the tokenizer's last ids first."""
    pytest.importorskip("bitsandbytes")
    base, tokenizer = tmp_path / "base", toy_tokenizer()
    causal(kind, rows=WORDS - 2, **WIDE[kind]).save_pretrained(base)
    tokenizer.save_pretrained(base)
    torch.manual_seed(3)
    start = load_base(base, tokenizer, frozen=section(how))
    assert logits_of(start).shape[-1] == rounded(WORDS) == 64
    assert (logits_of(start)[..., 0] == -1e4).all()  # pad stays excluded
    model = add_lora(start, LORA, TaskType.CAUSAL_LM, "sft.lora")
    before = {n: p for n, p in parameters(model).items() if "lora_" not in n}
    gradients = step(model)
    assert all("lora_" in n and g.dtype == torch.float32 for n, g in gradients.items())
    logits_of(model)
    assert largest_difference(step(model, checkpointing=True), gradients) < 1e-5
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    after = {n: p for n, p in parameters(model).items() if "lora_" not in n}
    assert largest_difference(after, before) == 0

    save_model(model, tokenizer, tmp_path / "sft")
    config = json.loads((tmp_path / "sft" / "config.json").read_text())
    assert "quantization_config" not in config
    whole = add_lora(load_base(base, tokenizer), LORA, TaskType.CAUSAL_LM, "sft.lora")
    weights = {n: p for n, p in model.state_dict().items() if "lora_" in n}
    whole.load_state_dict(weights, strict=False)
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    exclude_from(merged, tokenizer)
    expected = logits_of(whole)[..., :WORDS]
    torch.testing.assert_close(logits_of(merged), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_ppo_on_quantised_bases(
    kind: str, how: Any, sft: dict[str, Path], reward: dict[str, Path]
) -> None:
    """Invariants 9, 10, 12: ratio 1 and KL 0 at the start, the critic starts near the reward model,
    which itself keeps all its bits: its scores are the calibrated ones."""
    pytest.importorskip("bitsandbytes")
    config = replace(ppo_config(lora=LORA), model=section(how))
    parents = {"sft": Parent("sft", sft[kind], {}), "reward": Parent("reward", reward[kind], {})}
    roles = build_roles(config, toy_tokenizer(), parents, LAUNCH)
    assert roles.frozen_actor is None
    whole = parameters(load_scalar(reward[kind]))
    kept = {n.removeprefix("model."): p for n, p in parameters(roles.reward).items()}
    assert largest_difference(kept, whole) == 0
    for role in (roles.actor, roles.critic):
        assert any(p.dtype == STORED[how] for p in role.module.parameters())
        assert role.unwrapped.model.get_input_embeddings().weight.shape[0] == ROWS
    trainer = build_trainer(config, roles, toy_tokenizer(), LAUNCH)
    scored = trainer.score(fixed_rollout())
    assert (scored.logprobs - scored.ref_logprobs).abs().max() == 0
    stats, *_ = trainer.update(trainer.estimate(scored))
    assert stats["ratio_max"] == pytest.approx(1, abs=1e-5)
