"""Adapters of every family: where they sit, what they train, and that their folders load again."""

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from _families import FAMILIES, family_config
from _models import PAD, WORDS, largest_difference, parameters, toy_tokenizer
from peft import PeftModel, TaskType
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from cores.config import LoraSection
from cores.models import ScalarModel, add_lora, load_policy, load_scalar, save_model
from cores.models.adapters import lone_adapter
from cores.models.bases import load_base
from cores.models.loading import exclude_from

LORA = LoraSection(rank=4)
ROWS = WORDS - 2
"""Rows of the base: stage 1 must add the tokenizer's last two."""
IDS = torch.tensor([[5, 9, 13, 20, 59], [7, 59, 9, 10, 11]])
MASK = torch.ones_like(IDS, dtype=torch.bool)
AUTO: dict[str, Any] = {
    TaskType.CAUSAL_LM: AutoModelForCausalLM,
    TaskType.SEQ_CLS: AutoModelForSequenceClassification,
}
_NEOX = "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h"
_OPT = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj fc1 fc2"
_LLAMA = """self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj
mlp.up_proj mlp.down_proj"""
LAYERS = {
    "gpt2": ("transformer.h", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
    "opt": ("model.decoder.layers", _OPT),
    "opt_projected": ("model.decoder.layers", _OPT),
    "bloom": ("transformer.h", _NEOX.replace("attention.", "self_attention.")),
    "gpt_neox": ("gpt_neox.layers", _NEOX),
    "gptj": (
        "transformer.h",
        "attn.q_proj attn.k_proj attn.v_proj attn.out_proj mlp.fc_in mlp.fc_out",
    ),
}
BESIDE = {"opt_projected": {"model.decoder.project_in", "model.decoder.project_out"}}
"""Linear layers outside the blocks that are no head."""


def adapted_layers(kind: str) -> set[str]:
    """Names of the layers that get an adapter, written down by hand."""
    place, names = LAYERS.get(kind, ("model.layers", _LLAMA))
    return {f"{place}.{i}.{n}" for i in (0, 1) for n in names.split()} | BESIDE.get(kind, set())


def random_model(kind: str, task: TaskType, rows: int = WORDS) -> Any:
    """A random model in evaluation mode."""
    head = {"num_labels": 1} if task == TaskType.SEQ_CLS else {}
    config = family_config(kind, vocab_size=rows, pad_token_id=PAD, eos_token_id=1, **head)
    torch.manual_seed(0)
    return AUTO[task].from_config(config).eval()


def disturb(model: Any) -> None:
    """Give adapters, and a head trained with them, weights that matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.add_(torch.randn(p.shape, dtype=p.dtype) * 0.1)


def logits_of(model: Any) -> torch.Tensor:
    """Logits of `IDS`."""
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=MASK.long()).logits.clone()


@pytest.mark.parametrize("task", AUTO, ids=["policy", "scalar"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_linear_layer_but_the_head(kind: str, task: TaskType) -> None:
    """Invariant 10: adapters on the layers named here, none on head or embedding; all of them and
    nothing else (but a classification head) get gradients; without them the base is untouched."""
    model = random_model(kind, task)
    base, before = logits_of(model), parameters(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # GPT-2's fan_in_fan_out
        wrapped = add_lora(model, LORA, task, "sft.lora")
    prefix = "base_model.model."
    names = {n.removeprefix(prefix) for n, _ in wrapped.named_modules() if n.endswith(".lora_A")}
    assert {n.removesuffix(".lora_A") for n in names} == adapted_layers(kind)
    torch.testing.assert_close(logits_of(wrapped), base, atol=0, rtol=0)  # they start as nothing
    disturb(wrapped)
    trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    others = {n for n in trained if "lora_" not in n}
    head = {f"{prefix}score.modules_to_save.default.weight"}
    assert others == (head if task == TaskType.SEQ_CLS else set())
    wrapped(input_ids=IDS, attention_mask=MASK.long()).logits.square().mean().backward()
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.abs().max() > 0] == []
    torch.optim.SGD(trained.values(), lr=0.1).step()
    assert not torch.allclose(logits_of(wrapped), base, atol=1e-4)
    with wrapped.disable_adapter():
        torch.testing.assert_close(logits_of(wrapped), base, atol=0, rtol=0)
    after = {
        n.removeprefix(prefix).replace(".base_layer", "").replace(".original_module", ""): p
        for n, p in parameters(wrapped).items()
        if "lora_" not in n and "modules_to_save" not in n
    }
    assert largest_difference(after, before) == 0


def test_alpha_over_rank_is_the_adapters_scale() -> None:
    """Invariant 10: lora.alpha 12 at rank 4 weighs the adapters by 3."""
    section = LoraSection(rank=4, alpha=12.0)
    wrapped = add_lora(random_model("llama", TaskType.CAUSAL_LM), section, TaskType.CAUSAL_LM, "k")
    layers = [m for m in wrapped.modules() if isinstance(getattr(m, "scaling", None), dict)]
    assert {m.scaling["default"] for m in layers} == {3.0}


def base_folder(kind: str, folder: Path) -> Path:
    """A model on disk that has too few rows for the tokenizer."""
    model: PreTrainedModel = random_model(kind, TaskType.CAUSAL_LM, ROWS)
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_adapter_alone_is_the_merged_model(kind: str, tmp_path: Path) -> None:
    """Invariant 30: policy, then a scalar model on it; each written merged and as an adapter alone
    on an adapter alone, over a base whose vocabulary had to grow. All load as what was trained."""
    base, tokenizer = base_folder(kind, tmp_path / "base"), deepcopy(toy_tokenizer())
    tokenizer.pad_token = "w58"  # of the new rows, as stage 1 adds it
    policy = add_lora(load_base(base, tokenizer), LORA, TaskType.CAUSAL_LM, "sft.lora")
    disturb(policy)
    alone, whole = tmp_path / "sft", tmp_path / "merged"
    save_model(policy, tokenizer, alone, merge=False)
    save_model(policy, tokenizer, whole)
    assert lone_adapter(alone) is not None
    assert lone_adapter(whole) is None
    expected = logits_of(policy)
    mine, stock = load_policy(alone, dropout=False), AutoModelForCausalLM.from_pretrained(whole)
    assert largest_difference(parameters(mine), parameters(stock)) == 0
    assert mine.config.vocab_size == WORDS
    assert all(p.requires_grad for p in mine.parameters())  # the next stage may train it whole
    exclude_from(mine, tokenizer)
    torch.testing.assert_close(logits_of(mine), expected[..., :WORDS], atol=1e-5, rtol=1e-5)
    by_peft = PeftModel.from_pretrained(load_base(base, tokenizer), str(alone / "adapter"))
    torch.testing.assert_close(logits_of(by_peft), expected, atol=1e-5, rtol=1e-5)

    scalar = add_lora(load_scalar(alone, num_labels=1), LORA, TaskType.SEQ_CLS, "reward.lora")
    disturb(scalar)
    scalar.get_base_model().config.reward_mean = 0.75
    trained = ScalarModel(scalar.eval())
    save_model(scalar, tokenizer, tmp_path / "reward", merge=False)
    save_model(scalar, tokenizer, tmp_path / "reward_merged")
    start = AutoModelForSequenceClassification.from_pretrained(whole, num_labels=1)
    start.config.reward_mean = 0.75
    readers = [load_scalar(tmp_path / name) for name in ("reward", "reward_merged")]
    readers.append(PeftModel.from_pretrained(start, str(tmp_path / "reward" / "adapter")).eval())
    for reader in readers:
        found = ScalarModel(reader)
        assert found.mean == 0.75
        with torch.no_grad():
            close = {"atol": 1e-5, "rtol": 1e-5}
            torch.testing.assert_close(found(IDS, MASK), trained(IDS, MASK), **close)
