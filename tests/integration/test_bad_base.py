"""Bases that cannot be trained: said once, before the data are read."""

import json
from pathlib import Path
from typing import Any

import pytest
from _helpers import good
from safetensors.torch import load_file, save_file
from transformers import BartConfig

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 92536\n"


@pytest.fixture
def base(llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be damaged."""
    folder = tmp_path / "base"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the data fails."""
    monkeypatch.setattr("cores.data.sft_data", None)


def test_an_encoder_decoder(base: Path, files: Any, tmp_path: Path, refused: Any) -> None:
    """Of another family than T5's; not "can go through stage 1" and then that it cannot."""
    tokens = len(json.loads((base / "tokenizer.json").read_text())["model"]["vocab"])
    config = BartConfig(vocab_size=tokens, architectures=["BartForConditionalGeneration"])
    config.save_pretrained(base)
    said = refused("sft", good(base, files, tmp_path / "out"), tmp_path / "out")
    assert said.startswith("error: model.path: BartForConditionalGeneration is no causal language")
    assert "stage 1" not in said


def test_a_pointer_for_weights(base: Path, files: Any, tmp_path: Path, refused: Any) -> None:
    """git-lfs was not installed where the model was cloned."""
    (base / "model.safetensors").write_bytes(POINTER)
    said = refused("sft", good(base, files, tmp_path / "out"), tmp_path / "out")
    assert said.startswith(f"error: {base}: its model cannot be loaded: model.safetensors is a git")


def test_names_of_a_wrapped_model(base: Path, files: Any, tmp_path: Path, refused: Any) -> None:
    """What the library would fill with random numbers, and train without a word."""
    weights = load_file(base / "model.safetensors")
    renamed = {f"_orig_mod.module.{name}": value for name, value in weights.items()}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    said = refused("sft", good(base, files, tmp_path / "out"), tmp_path / "out")
    assert said.startswith(f"error: {base}: its weights do not fit the LlamaForCausalLM")
    assert "`_orig_mod.module.`" in said


def test_another_models_config(base: Path, files: Any, tmp_path: Path, refused: Any) -> None:
    """A layer more than the weights have."""
    config = json.loads((base / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (base / "config.json").write_text(json.dumps(config))
    said = refused("sft", good(base, files, tmp_path / "out"), tmp_path / "out")
    assert "without model.layers.2." in said


def test_no_positions(base: Path, files: Any, tmp_path: Path, refused: Any) -> None:
    """It would be taken for a model whose length nobody knows."""
    config = json.loads((base / "config.json").read_text())
    config["max_position_embeddings"] = 0
    (base / "config.json").write_text(json.dumps(config))
    said = refused("sft", good(base, files, tmp_path / "out"), tmp_path / "out")
    assert "no model has max_position_embeddings = 0" in said


def test_whole_numbers_for_weights(base: Path, files: Any, tmp_path: Path, refused: Any) -> None:
    """Quantised without a word in config.json: the library would read 0, 1, 2 as weights."""
    weights = {k: v.mul(40).char() for k, v in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    said = refused("sft", good(base, files, tmp_path / "out"), tmp_path / "out")
    assert said.startswith(f"error: {base / 'model.safetensors'}: ")
    assert "holds I8, and whole numbers cannot be trained" in said
