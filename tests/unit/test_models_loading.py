"""Adapters and models as they are loaded, and what is refused before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _families import POSITIONS
from _models import causal, model_config, toy_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
)

from cores.errors import UserError
from cores.models import (
    add_lora,
    load_policy,
    load_scalar,
    load_tokenizer,
    save_model,
)
from cores.models.layers import fuse_layers
from cores.models.loading import check_length, max_length


def test_adapters_are_as_configured() -> None:
    """Invariant 10: rank, alpha and dropout of the section; every linear layer but the head, or
    the layers named; they start as nothing."""
    from _models import LORA
    from peft import TaskType

    section = type(LORA)(rank=4, alpha=8.0, dropout=0.25)
    model = add_lora(causal("llama"), section, TaskType.CAUSAL_LM, "sft.lora")
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    assert (layer.r["default"], layer.scaling["default"]) == (4, 2.0)
    assert layer.lora_dropout["default"].p == 0.25
    assert (layer.lora_B["default"].weight == 0).all()
    names = {n.split(".lora_A")[0].rsplit(".", 1)[1] for n in model.state_dict() if "lora_A" in n}
    layers = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"}
    assert names == layers
    section = type(LORA)(rank=4, target_modules=["q_proj"])
    model = add_lora(causal("llama"), section, TaskType.CAUSAL_LM, "sft.lora")
    assert sum("lora_A" in n for n in model.state_dict()) == 2


def test_target_modules_that_do_not_exist() -> None:
    """Invariant 10: adapters on no layer would train nothing; the key is named."""
    from _models import LORA
    from peft import TaskType

    section = type(LORA)(rank=4, target_modules=["nothing"])
    with pytest.raises(UserError, match=r"sft\.lora\.target_modules: \['nothing'\]"):
        add_lora(causal("gpt2"), section, TaskType.CAUSAL_LM, "sft.lora")


def test_rows_longer_than_the_model() -> None:
    """Invariant 5: positions beyond the model's are refused before anything runs."""
    config = model_config("gpt2")
    assert max_length(config) == POSITIONS
    check_length(config, POSITIONS, "sft.max_length")
    with pytest.raises(UserError, match=r"sft\.max_length: 129 tokens"):
        check_length(config, POSITIONS + 1, "sft.max_length")


@pytest.mark.parametrize("load", [load_tokenizer, lambda p: load_policy(p, dropout=False)])
def test_folders_that_cannot_be_loaded(load: Any, tmp_path: Path) -> None:
    """Invariant 30: a missing folder and an empty one are errors in one paragraph."""
    with pytest.raises(UserError, match="there is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path)


@torch.no_grad()
def test_a_scalar_model_of_a_policy_has_a_new_head(tmp_path: Path) -> None:
    """Invariant 30: stage 2 starts from the stage-1 weights; saved, it loads as a stock one-label
    classifier."""
    policy = causal("gpt2")
    save_model(policy, toy_tokenizer(), tmp_path / "sft")
    model = load_scalar(tmp_path / "sft", num_labels=1)
    assert torch.equal(model.base_model.wte.weight, policy.base_model.wte.weight)
    assert model.score.weight.shape == (1, 32)
    save_model(model, toy_tokenizer(), tmp_path / "reward")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert stock.config.num_labels == 1
    ids = torch.tensor([[5, 9, 13]])
    theirs = fuse_layers(stock)(ids).logits
    torch.testing.assert_close(theirs, model(ids).logits, atol=0, rtol=0)
