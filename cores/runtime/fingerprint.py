"""What a model is, in a few hashes: to refuse a parent that is damaged or does not fit."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from transformers import PreTrainedTokenizerBase

from cores.config import ModelSection
from cores.errors import UserError

MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja")
NO_MODELS = {"stage.json", "state.json", "checkpoints", "weights"}
"""What a stage folder has at its top beside its models."""
HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub before going on without it."""


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes; UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def model_files(folder: Path, hashed: bool = True) -> dict[str, str]:
    """sha256 (empty unless `hashed`) of the files of a stage's models, by their path inside
    `folder`: weights, configs, tokenizers."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in MODEL_FILES and p.is_file())
    names = {p: p.relative_to(folder) for p in paths}
    return {
        str(name): sha256_file(path) if hashed else ""
        for path, name in names.items()
        if name.parts[0] not in NO_MODELS
    }


def base_facts(section: ModelSection, base: Any) -> dict[str, Any]:
    """What stage 1 started from, by the section as it was given: a folder's files, or the hub's
    commit, which `base`, its configuration, tells; whether it took that alone, and random
    weights."""
    folder = Path(section.path).expanduser()
    fresh = {"from_config": True} if section.from_config else {}
    if folder.is_dir():
        return {"folder": section.path, "files": model_files(folder), **fresh}
    commit = getattr(base, "_commit_hash", None)
    if section.revision is not None:
        commit = Path(base.name_or_path).name  # as the hub's cache calls its folders
    return {"hub": section.path, "commit": commit, **fresh}


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


def cache_if_unreachable(path: str) -> None:
    """For a model that is no local folder: use the cache alone from here on if the hub is away.

    What is not in the cache then fails at once, and its loader says how to give a local path.
    """
    if constants.HF_HUB_OFFLINE or Path(path).expanduser().is_dir():
        return
    try:
        HfApi().model_info(path, timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):
        return  # the hub answers, or would refuse such a name: the loader says what is wrong
    except (HTTPError, OSError):
        constants.HF_HUB_OFFLINE = True
