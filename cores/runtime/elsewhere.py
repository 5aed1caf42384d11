"""Models that no stage of this run wrote, in a stage's place (`sft.path`, `reward.path`) or as the
reward model's own base (`reward.base`): fetched, and as much of a stage.json as they tell."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cores.config import Config
from cores.errors import UserError
from cores.files import read_json
from cores.models import load_tokenizer, settle_pad_token
from cores.models.bases import check_base
from cores.models.folders import CLASSIFIER, place, reading
from cores.models.images import reads_images
from cores.models.loading import check_scalar, load_config
from cores.runtime.fingerprint import cache_if_unreachable, model_files, tokenizer_fingerprint

OTHERS = ["*/*", "consolidated*", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pt", "*.pth"]
"""Files of a hub's model that hold its weights in other forms."""


def found_elsewhere(config: Config, stage: str, hashed: bool) -> tuple[Path, dict[str, Any]]:
    """Folder of the model that `<stage>.path` names, and as much of a stage.json as there is.

    Tokenizer and vocab_size as they will be, with a pad token of its own; config, of a folder that
    a stage wrote; chat: whether it knows texts by a chat template; source: see `source_of`; notes
    to print. UserError if it cannot take the stage's place.
    """
    path, revision, note = getattr(config, stage).path, getattr(config, stage).revision, None
    try:
        folder = fetched(path, revision, f"{stage}.revision")
        model, tokenizer = load_config(folder), load_tokenizer(folder)
        if stage == "sft":
            _check_tokens(config, tokenizer)
            note = settle_pad_token(tokenizer, config.model.pad_token)
            check_base(folder, model, tokenizer)
        else:
            _check_reward(model, path)
            if tokenizer.eos_token is not None:  # as the policy's, so that they compare
                settle_pad_token(tokenizer, None)
    except UserError as error:  # it names the key of stage 1's base
        raise UserError(str(error).replace("model.path", f"{stage}.path")) from None
    written = read_json(folder / "stage.json") if (folder / "stage.json").exists() else {}
    then = written.get("config", {"template": {}})
    parts: list[Any] = [None]
    if isinstance(then, dict):
        parts = [then.get("template"), then.get("model", {})]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(
            f"{stage}.path: {folder / 'stage.json'} is damaged (unlike config.template). Remove "
            "it, and the folder is read as a model of no stage's."
        )
    source = source_of(path, folder, hashed)
    notes = [f"{stage}: from {source if 'hub' in source else path}", note]
    return folder, {
        "parents": {},
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "vocab_size": max(model.get_text_config().vocab_size, len(tokenizer)),
        "config": then,
        "chat": parts[0].get("kind", "chat" if tokenizer.chat_template else "") == "chat",
        "source": source,
        "notes": [line for line in notes if line],
    }


def own_base(
    path: str, tokenizer: PreTrainedTokenizerBase, hashed: bool
) -> tuple[Path, dict[str, Any]]:
    """Folder of the model that `path` names, and its files or commit for stage.json; UserError if
    it is no language model whose tokenizer gives the ids of the policy's, `tokenizer`."""
    key = "reward.base"
    try:
        folder = fetched(path, None, key)
        theirs = load_tokenizer(folder)
        check_base(folder, base := load_config(folder), tokenizer)
        _check_text(base, path, "cannot judge replies of a policy that does not")
    except UserError as error:  # it names the key of stage 1's base
        raise UserError(str(error).replace("model.path", key)) from None
    ours, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    known = theirs.get_vocab()
    unlike = [token for token, number in known.items() if ours.get(token) != number]
    unlike += [token for token in ours if token not in known and token not in added]
    if unlike:
        raise UserError(
            f"{key}: {path} has another tokenizer than the stage-1 model ({len(unlike)} tokens "
            f"differ, such as {min(unlike)!r}), and stage 3 hands the reward model the policy's "
            f"ids. Give a model of the same tokenizer, or train a reward model apart and set "
            "reward.path."
        )
    return folder, source_of(path, folder, hashed)


def source_of(path: str, folder: Path, hashed: bool) -> dict[str, Any]:
    """For stage.json, what `fetched` gave for a path: its files' hashes, or the hub's commit."""
    if Path(path).expanduser().is_dir():
        return {"folder": path, "files": model_files(folder, hashed)}
    return {"hub": path, "commit": folder.name}


def fetched(path: str, revision: str | None, key: str) -> Path:
    """A local folder; or of a hub id the one in the hub's cache, which is named as its commit."""
    if (folder := Path(place(path))).is_dir():
        if revision is not None:
            raise UserError(f"{key}: is for hub ids, and {path} is a folder; remove the key.")
        return folder.resolve()
    cache_if_unreachable(path)
    with reading(f"{path}@{revision}" if revision else path, "files"):
        return Path(snapshot_download(path, revision=revision, ignore_patterns=OTHERS))


def pinned(config: Config) -> Config:
    """`config` whose model.path is the folder in the hub's cache with model.revision, if any."""
    model = config.model
    if model.revision is None:
        return config
    folder = fetched(model.path, model.revision, "model.revision")
    return replace(config, model=replace(model, path=str(folder), revision=None))


def _check_reward(model: PretrainedConfig, path: str) -> None:
    """UserError unless it has one trained number at every token."""
    names = ", ".join(model.architectures or [])
    binned = hasattr(model, "reward_scale")  # stage 2 wrote it
    if CLASSIFIER not in names or not (model.num_labels == 1 or binned):
        labels = f" with {model.num_labels} labels" if CLASSIFIER in names else ""
        raise UserError(
            f"model.path: {path} is a {names or model.model_type}{labels}, and a reward model's "
            "score is one number. Give a sequence-classification model with num_labels 1."
        )
    _check_text(model, path, "judges replies of the policy that it was trained beside alone")
    check_scalar(model)


def _check_text(model: PretrainedConfig, path: str, judges: str) -> None:
    """UserError unless the model reads a prompt and a reply as one text."""
    if model.is_encoder_decoder or reads_images(model):
        raise UserError(
            f"model.path: {path} reads more than one text (an encoder's, or images), and {judges}. "
            "Give a model that reads prompt and reply as one text."
        )


def _check_tokens(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError for tokens of the template that it would have been trained with by stage 1."""
    template = config.template
    absent = [token for token in template.tokens if token not in tokenizer.get_vocab()]
    if absent:
        raise UserError(
            f"template.tokens: {absent[0]!r} is no token of sft.path, which is not trained any "
            "more in stage 1, where tokens are added. Remove it."
        )
    if template.eos_token not in (None, tokenizer.eos_token):
        raise UserError(
            f"template.eos_token: {template.eos_token!r} does not end what sft.path writes, which "
            f"is {tokenizer.eos_token!r}. Remove the key, or run stage 1."
        )
