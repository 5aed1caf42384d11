"""What a checkpoint is, in a few hashes: to refuse a parent that is damaged or does not fit."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_files(folder: Path) -> dict[str, str]:
    """sha256 of the files of a stage's models, by their path inside `folder`: weights, configs,
    tokenizers."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json", ".jinja"))
    return {str(p.relative_to(folder)): sha256_file(p) for p in paths if p.name != "stage.json"}


def base_facts(path: str, model: Any) -> dict[str, Any]:
    """What stage 1 started from: a folder's files, or the hub's commit."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return {"folder": path, "files": model_files(folder)}
    return {"hub": path, "commit": getattr(model.config, "_commit_hash", None)}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what decides ids: vocabulary, special tokens and chat template."""
    facts = [
        sorted(tokenizer.get_vocab().items()),
        tokenizer.bos_token,
        tokenizer.eos_token,
        tokenizer.pad_token,
        tokenizer.chat_template,
    ]
    return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()


def versions() -> dict[str, Any]:
    """Versions of the libraries that shape a result."""
    names = ["transformers", "trl", "datasets", "peft", "accelerate"]
    installed = {name: metadata.version(name) for name in names}
    return {"torch": torch.__version__, **installed}
