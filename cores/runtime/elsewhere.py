"""Models from elsewhere in place of finished stages: found, judged, and named by their hash."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PretrainedConfig

from cores.config import Config
from cores.errors import UserError
from cores.models import load_tokenizer, settle_pad_token
from cores.models.folders import place, reading
from cores.models.health import CLASSIFIER
from cores.models.loading import check_base, check_scalar, load_config
from cores.models.vocabulary import fitted
from cores.runtime.files import read_json
from cores.runtime.fingerprint import model_files, tokenizer_fingerprint
from cores.runtime.hub import cache_if_unreachable

FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
"""What is fetched beside the weights."""


def found_elsewhere(
    config: Config, stage: str, hashed: bool
) -> tuple[Path, dict[str, Any], list[str]]:
    """Folder, record and lines to print of the model that `<stage>.path` names.

    The record is as much of a stage.json as there is: tokenizer and vocab_size as they will be,
    with a pad token of its own; template, of a folder that a stage wrote; chat: whether a chat
    template is what it knows texts by; source: its files' hashes, or the hub's commit. UserError if
    it cannot be such a parent.
    """
    section, key = getattr(config, stage), f"{stage}.path"
    with _named(key):
        folder, commit = _fetched(section.path, section.revision, f"{stage}.revision")
        model, tokenizer = load_config(folder), load_tokenizer(folder)
        notes = []
        if stage == "sft":
            notes.append(settle_pad_token(tokenizer, config.model.pad_token))
            check_base(folder, model, tokenizer)
        else:
            _check_reward(model, section.path, key)
            if tokenizer.eos_token is not None:  # as the policy's, so that they compare
                settle_pad_token(tokenizer, None)
    written = read_json(folder / "stage.json") if (folder / "stage.json").exists() else {}
    template = written.get("config", {}).get("template", {})
    chat = template["kind"] == "chat" if template else tokenizer.chat_template is not None
    source: dict[str, Any] = {"hub": section.path, "commit": commit}
    if commit is None:
        source = {"folder": section.path, "files": model_files(folder, hashed)}
    record = {
        "parents": {},
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "vocab_size": fitted(model.get_text_config().vocab_size, tokenizer),
        "template": template,
        "chat": chat,
        "source": source,
    }
    origin = f"{key}: {section.path}" + (f" at commit {commit}" if commit else "")
    return folder, record, [origin, *filter(None, notes)]


def _fetched(path: str, revision: str | None, key: str) -> tuple[Path, str | None]:
    """A local folder; or of a hub id, the folder of its files in the hub's cache and the commit."""
    if (folder := Path(place(path))).is_dir():
        if revision is not None:
            raise UserError(f"{key}: is for hub ids, and {path} is a folder; remove the key.")
        return folder.resolve(), None
    cache_if_unreachable(path)
    folder = _snapshot(path, revision, "*.safetensors")
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(path, revision, "*.bin")
    return folder, folder.name


def _snapshot(path: str, revision: str | None, weights: str) -> Path:
    with reading(path if revision is None else f"{path}@{revision}", "files"):
        return Path(
            snapshot_download(
                path,
                revision=revision,
                allow_patterns=[*FILES, weights],
                ignore_patterns=["*/*", "consolidated*"],  # other forms of the same weights
            )
        )


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Errors within, which would name the key of stage 1's base, name this one."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("model.path", key)) from None


def _check_reward(model: PretrainedConfig, path: str, key: str) -> None:
    """UserError unless it has one trained number at every token."""
    names = model.architectures or []
    if CLASSIFIER not in "".join(names):
        raise UserError(
            f"{key}: {path} is a {', '.join(names) or model.model_type}, which has no trained head "
            "for scores. Give a sequence-classification model with one label."
        )
    check_scalar(model)
    if model.num_labels != 1:
        raise UserError(
            f"{key}: {path} has {model.num_labels} labels, and a reward model's score is one "
            "number. Give a model with num_labels 1."
        )
