"""Folders of models, damaged by hand and at random.

What comes of each is a whole model or a UserError: never another exception, and never a model that
has random weights in it.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _damage import (
    CONFIG,
    RANDOMLY,
    WEIGHTS,
    Damage,
    damage_at_random,
    instead,
    keys,
    one_paragraph,
)
from _models import ROWS, WORDS, sft_folder
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cores.errors import UserError
from cores.models import check_saving, load_tokenizer, settle_pad_token
from cores.models.bases import check_base, load_base
from cores.models.loading import load_config, scalar_problem

TOKENIZER, GENERATION = "tokenizer.json", "generation_config.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def read_base(folder: Path) -> Any:
    """What stage 1 does with a base before it trains."""
    base = load_config(folder)
    tokenizer = load_tokenizer(folder)
    settle_pad_token(tokenizer, None)
    check_base(folder, base, tokenizer)
    scalar_problem(base)
    model = load_base(folder, tokenizer)
    check_saving(model, tokenizer)
    return model


def same_weights(model: Any) -> bool:
    """Whether all is as in the file that was saved, but rows of tokens that were added."""
    source = load_file(sft_folder("gpt2") / WEIGHTS)
    state = model.state_dict()
    known = {k: WORDS if len(v) == ROWS else len(v) for k, v in source.items()}
    return all(torch.equal(state[k][:n], source[k][:n]) for k, n in known.items())


def to(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def without(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str, size: int) -> Damage:
    return lambda folder: os.truncate(folder / name, size)


def sharded(change: Callable[[Path, dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(tensors)
        place = {name: SHARDS[i % 2] for i, name in enumerate(names)}
        for shard in SHARDS:
            save_file({n: tensors[n] for n in names if place[n] == shard}, folder / shard)
        index: dict[str, Any] = {"metadata": {}, "weight_map": place}
        change(folder, index)
        (folder / INDEX).write_text(json.dumps(index), "utf-8")

    return damage


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch " + b"RAN'\ntR.")


def adapter_only(text: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text(text, "utf-8")

    return damage


def lora(base: Path | str, **values: Any) -> str:
    known = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"]}
    return json.dumps({**known, "base_model_name_or_path": str(base), **values})


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 92536\n"
REFUSED: dict[str, tuple[Damage, str]] = {
    **{f"{n} a pointer": (to(n, POINTER), "git lfs pull") for n in (WEIGHTS, CONFIG, TOKENIZER)},
    **{f"{n} a page": (to(n, b"<html>"), "a web page") for n in (WEIGHTS, CONFIG, TOKENIZER)},
    **{f"{n} empty": (to(n, b""), "empty") for n in (WEIGHTS, CONFIG, TOKENIZER, GENERATION)},
    **{f"no {n}": (without(n), "cannot be loaded") for n in (WEIGHTS, CONFIG, TOKENIZER)},
    **{
        f"{n} a {make.__name__}": (instead(n, make), f"{n}: no file that can be read")
        for n in (WEIGHTS, CONFIG, TOKENIZER, GENERATION)
        for make in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path))
    },
    "weights cut in the header": (cut(WEIGHTS, 300), f"{WEIGHTS} is cut off"),
    "weights cut in the data": (cut(WEIGHTS, 100_000), f"{WEIGHTS} is cut off"),
    "a list": (to(CONFIG, b"[]"), "a list, not an object"),
    "generation cut": (cut(GENERATION, 50), f"{GENERATION}: damaged"),
    "layers": (keys(CONFIG, n_layer=10**9), "no model has n_layer = 1000000000 (config.json)"),
    "positions": (keys(CONFIG, n_positions=10**12), "no model has n_positions"),
    "one layer more": (keys(CONFIG, n_layer=3), "without transformer.h.2."),
    "one layer less": (keys(CONFIG, n_layer=1), "with transformer.h.1."),
    "width": (keys(CONFIG, n_embd=64), "([96], not [192])"),
    "text for a number": (keys(CONFIG, n_embd="32"), "n_embd"),
    "drops out twice": (keys(CONFIG, attn_pdrop=2), "no model has attn_pdrop = 2 (config.json)"),
    "drops out less than nothing": (keys(CONFIG, resid_pdrop=-0.5), "no model has resid_pdrop"),
    "dtype": (keys(CONFIG, dtype=5), "no model has dtype = 5"),
    "labels": (keys(CONFIG, num_labels=10**9), "no model has num_labels = 1000000000"),
    "heads": (keys(CONFIG, n_head=-4), "no model has n_head = -4"),
    "another model type": (keys(CONFIG, model_type="opt"), "are of two families"),
    "unknown type": (keys(CONFIG, model_type="nope"), "nope"),
    "encoder-decoder": (keys(CONFIG, model_type="bart"), "are of two families"),
    "both directions": (keys(CONFIG, architectures=["BertForMaskedLM"]), "no causal"),
    "architectures": (keys(CONFIG, architectures=3), "no list of names"),
    "gptq": (keys(CONFIG, quantization_config={"quant_method": "gptq"}), "are quantised"),
    "flash": (keys(CONFIG, _attn_implementation="flash_attention_2"), "Install what it names"),
    "code of its own": (
        keys(CONFIG, model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "No code of a folder is run",
    ),
    "a pickle with code": (pickled, "convert it to safetensors"),
    "shard gone": (sharded(lambda f, i: (f / SHARDS[1]).unlink()), f"no file '{SHARDS[1]}'"),
    "shard outside": (
        sharded(lambda f, i: i.update(weight_map=dict.fromkeys(i["weight_map"], "../x"))),
        "no file '../x'",
    ),
    "no weight map": (sharded(lambda f, i: i.update(weight_map=[])), "no file ''"),
    "shard twice": (sharded(lambda f, i: shutil.copy(f / SHARDS[0], f / SHARDS[1])), "without"),
    "adapter beside": (to("adapter_config.json", lora("x").encode()), "Merge it into its base"),
    "adapter without a base": (adapter_only(lora("/nowhere")), "there is no such folder"),
    "adapter cut": (adapter_only('{"r": 2'), "adapter cannot be loaded"),
    "adapter of another kind": (adapter_only(lora("/nowhere", peft_type="IA3")), "no LoRA"),
    "adapter of a huge rank": (adapter_only(lora("/nowhere", r=10**9)), "a rank from 1 to"),
    "adapter without weights": (adapter_only(lora(sft_folder("gpt2"))), "adapter cannot be"),
    "vocabulary empty": (
        keys(TOKENIZER, model={"type": "BPE", "vocab": {}, "merges": []}),
        "has 0 tokens beside those",
    ),
    "stop ids": (keys(GENERATION, eos_token_id="x"), "eos_token_id"),
    "template a list": (keys("tokenizer_config.json", chat_template=[1]), ""),
}
WHOLE: dict[str, Damage] = {
    "outputs without names": keys(CONFIG, return_dict=False),
    "as it was": lambda folder: None,
    "shards": sharded(lambda f, i: None),
    "no generation config": without(GENERATION),
    "other keys": keys(CONFIG, something=1),
    "other files": to("README.md", b""),
}


def copied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(sft_folder("gpt2"), folder)
    return folder


@pytest.mark.parametrize("kind", REFUSED)
def test_a_damaged_base_is_refused(kind: str, tmp_path: Path) -> None:
    """One paragraph that names the folder or file and what is wrong with it; nothing is run."""
    damage, says = REFUSED[kind]
    folder = copied(tmp_path / "base")
    damage(folder)
    with pytest.raises(UserError) as error:
        read_base(folder)
    said = str(error.value)
    assert says in said
    assert said.startswith((str(folder), "model.path: ")), said
    assert "\n" not in said
    assert not Path("RAN").exists()


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_base_is_read(kind: str, tmp_path: Path) -> None:
    """What other tools leave beside a model, or do without, is no damage."""
    folder = copied(tmp_path / "base")
    WHOLE[kind](folder)
    assert same_weights(read_base(folder))


@RANDOMLY
@given(data=st.data())
def test_any_damage_to_a_base(data: st.DataObject, tmp_path: Path) -> None:
    """A key of another value, bytes flipped or cut off, files swapped or gone."""
    folder = copied(tmp_path / "base")
    damaged = damage_at_random(data, folder)
    model = one_paragraph(read_base, folder)
    assert model is None or damaged == WEIGHTS or same_weights(model)
