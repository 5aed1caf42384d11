"""Weights that are not a model's own, or no numbers; saving that would fail after the training."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import (
    FAMILIES,
    LORA,
    causal,
    classifier,
    largest_difference,
    parameters,
    reward_folder,
    sft_folder,
    toy_tokenizer,
)
from peft import TaskType
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config

from cores.errors import UserError
from cores.models import (
    add_lora,
    check_saving,
    load_policy,
    load_scalar,
    load_tokenizer,
    save_model,
)
from cores.models.bases import check_base, load_base
from cores.models.folders import nonfinite
from cores.models.loading import load_config
from cores.models.vocabulary import embedding

Change = Callable[[dict[str, Any]], dict[str, Any]]


def changed(folder: Path, source: Path, change: Change) -> Path:
    """A copy of `source` with other tensors in its file."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_reward_model_for_a_policy() -> None:
    """It has no fault but that it is another kind of model."""
    said = said_of(reward_folder("gpt2"))
    assert ": it is a GPT2ForSequenceClassification, a reward model perhaps, and no GPT2LM" in said
    assert said.endswith("with score.weight, of which it has no use. Give a GPT2LMHeadModel.")


@pytest.mark.parametrize("name", ["ppo.unfinished", "ppo.unfinished/checkpoints/step-3"])
def test_an_unfinished_run_for_a_model(tmp_path: Path, name: str) -> None:
    """Neither it nor a checkpoint of its; what makes a model of one is named."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    for read in (load_config, load_tokenizer):
        with pytest.raises(UserError, match=r"is of an unfinished run, .* scripts/export\.py"):
            read(folder)


def said_of(folder: Path) -> str:
    """What both the check before the data and the loading say."""
    with pytest.raises(UserError) as early:
        check_base(folder, load_config(folder), toy_tokenizer())
    with pytest.raises(UserError) as late:
        load_base(folder, toy_tokenizer())
    assert str(early.value) == str(late.value)
    return str(late.value)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_whole(kind: str) -> None:
    """Nothing is missing or too much: ties, buffers, a new head for the old one."""
    folder = sft_folder(kind)
    check_base(folder, load_config(folder), toy_tokenizer())
    assert nonfinite(load_scalar(folder, num_labels=1)) == []
    assert nonfinite(load_scalar(reward_folder(kind))) == []


def test_the_check_reads_no_values_and_draws_no_numbers() -> None:
    """So that it costs nothing, and the training after it is what it was without it."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_base(sft_folder("llama"), load_config(sft_folder("llama")), toy_tokenizer())
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_surplus_and_misshaped_tensors_are_named(tmp_path: Path) -> None:
    """The first three and how many more; never a model with random weights in it."""
    llama = sft_folder("llama")
    lost = changed(
        tmp_path / "a", llama, lambda t: {k: v for k, v in t.items() if "layers.1." not in k}
    )
    assert "without model.layers.1.input_layernorm.weight, " in said_of(lost)
    assert " and 6 more." in said_of(lost)
    more = changed(tmp_path / "b", llama, lambda t: {**t, "v_head.weight": torch.ones(1)})
    assert "with v_head.weight, of which it has no use." in said_of(more)
    shape = changed(tmp_path / "c", llama, lambda t: {**t, "model.norm.weight": torch.ones(5)})
    assert "with model.norm.weight ([5], not [32])." in said_of(shape)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_a_wrapped_models_prefix_is_named(prefix: str, tmp_path: Path) -> None:
    """torch.compile and DDP put one before every name."""
    folder = changed(
        tmp_path / "a", sft_folder("gpt2"), lambda t: {prefix + k: v for k, v in t.items()}
    )
    assert f"Every name begins with `{prefix}`" in said_of(folder)


def test_buffers_of_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    """Masks and frequencies that classes computed and saved in former times."""
    old = {
        "gpt2": ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"],
        "gpt_neox": ["gpt_neox.layers.0.attention.masked_bias"],
        "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.position_ids"],
    }
    for kind, names in old.items():
        extra = {name: torch.ones(2) for name in names}
        folder = changed(tmp_path / kind, sft_folder(kind), lambda t, e=extra: {**t, **e})  # type: ignore[misc]
        check_base(folder, load_config(folder), toy_tokenizer())


def test_a_reward_models_head_is_not_made_up(tmp_path: Path) -> None:
    """A causal model gets a new head; a reward model without its own is damaged."""
    folder = changed(
        tmp_path / "a",
        reward_folder("llama"),
        lambda t: {k: v for k, v in t.items() if k != "score.weight"},
    )
    with pytest.raises(UserError, match=r"without score\.weight"):
        load_scalar(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_named(value: float, tmp_path: Path) -> None:
    """Base, sft and reward parent: which tensor, which folder, and that it was so before."""

    def spoil(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["model.norm.weight"][3] = value
        return tensors

    loads: dict[str, tuple[Path, Callable[[Path], Any]]] = {
        "base": (sft_folder("llama"), lambda p: load_base(p, toy_tokenizer())),
        "sft": (sft_folder("llama"), lambda p: load_policy(p, dropout=False)),
        "reward": (reward_folder("llama"), load_scalar),
    }
    for name, (source, load) in loads.items():
        folder = changed(tmp_path / name, source, spoil)
        with pytest.raises(UserError) as error:
            load(folder)
        assert str(error.value).startswith(f"{folder}: NaN or infinite values in model.norm.weight")
        assert "bad before this run" in str(error.value)


def test_a_mean_that_is_no_number(tmp_path: Path) -> None:
    """reward_mean is subtracted from every score."""
    folder = changed(tmp_path / "a", reward_folder("gpt2"), lambda t: t)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"reward_mean": 0.75', '"reward_mean": NaN'))
    with pytest.raises(UserError, match=r"NaN or infinite values in reward_mean \(config\.json\)"):
        load_scalar(folder)


def test_a_tokenizer_of_another_model() -> None:
    """A few ids more than rows are added tokens; many are another model's."""
    tokenizer = load_tokenizer(sft_folder("gpt2"))
    config = load_config(sft_folder("gpt2"))
    tokenizer.add_tokens([f"more{i}" for i in range(68)])  # 128 ids for 64 rows
    check_base(sft_folder("gpt2"), config, tokenizer)
    tokenizer.add_tokens(["too many"])
    with pytest.raises(UserError, match="129 tokens and its model 64 rows: they do not belong"):
        check_base(sft_folder("gpt2"), config, tokenizer)


def test_saving_is_tried_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form that stages save, tied or with adapters; the model stays as it was; an error of
    the library is one paragraph."""
    for kind in ("gpt2", "llama"):
        model, tokenizer = causal(kind), toy_tokenizer()
        weights, generation = parameters(model), model.generation_config.to_dict()
        check_saving(model, tokenizer)
        assert largest_difference(parameters(model), weights) == 0
        assert model.generation_config.to_dict() == generation
        check_saving(add_lora(model, LORA, TaskType.CAUSAL_LM, "sft.lora"), tokenizer)
    check_saving(classifier("gpt2"), toy_tokenizer())
    model = causal("gpt2")
    monkeypatch.setattr(model.config, "save_pretrained", None)
    with pytest.raises(UserError, match="its model cannot be saved: TypeError"):
        check_saving(model, toy_tokenizer())
    model = causal("gpt2")
    model.generation_config.eos_token_id = "x"
    with pytest.raises(UserError, match="eos_token_id in its generation_config"):
        check_saving(model, toy_tokenizer())


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    """The library writes weights for their owner alone."""
    before = os.umask(0o027)
    try:
        save_model(causal("gpt2"), toy_tokenizer(), tmp_path / "a")
        adapted = add_lora(load_base(tmp_path / "a", toy_tokenizer()), LORA, TaskType.CAUSAL_LM, "")
        save_model(adapted, toy_tokenizer(), tmp_path / "b")
    finally:
        os.umask(before)
    files = [p for folder in ("a", "b") for p in (tmp_path / folder).rglob("*.safetensors")]
    assert len(files) == 3
    assert {oct(p.stat().st_mode & 0o777) for p in files} == {"0o640"}


def test_a_model_of_text_and_images(tmp_path: Path) -> None:
    """Gemma 3 from 4B on: what concerns text is one level down in its configuration. Saved and
    loaded, the logits are the same, and its dropout can be turned off."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
            "attention_dropout": 0.1, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    toy_tokenizer().save_pretrained(tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    tokenizer.add_tokens(["one", "two", "three", "four", "five"])
    check_base(tmp_path / "base", load_config(tmp_path / "base"), tokenizer)
    model = load_base(tmp_path / "base", tokenizer)
    check_saving(model, tokenizer)
    save_model(model, tokenizer, tmp_path / "sft")
    again = load_policy(tmp_path / "sft", dropout=False)
    assert again.config.get_text_config().vocab_size == embedding(again).shape[0] == 65
    ids = torch.arange(5, 25).view(1, -1)
    kept = slice(1, len(tokenizer))
    assert torch.equal(model(ids).logits[..., kept], again(ids).logits[..., kept])
    rates = [m.attention_dropout for m in again.modules() if hasattr(m, "attention_dropout")]
    assert rates[-2:] == [0.0, 0.0]
    assert again.config.get_text_config().attention_dropout == 0.1


def test_large_values_are_numbers() -> None:
    """Their sum overflows, and they do not; a quantised or empty parameter has none to look at."""
    model = causal("gpt2")
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
        assert nonfinite(model) == []
        model.transformer.ln_f.bias[0] = -torch.inf
    model.transformer.register_parameter("none", torch.nn.Parameter(torch.empty(0)))
    assert nonfinite(model) == ["transformer.ln_f.bias"]
