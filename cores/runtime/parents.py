"""What a stage starts from, finished stages or models from elsewhere: checked before it is used."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cores.config import Config, TemplateSection, plain
from cores.errors import UserError
from cores.files import read_json
from cores.models import load_tokenizer, settle_pad_token
from cores.models.adapters import base_of, lone_adapter
from cores.models.loading import check_length, check_scalar, load_config
from cores.runtime.elsewhere import found_elsewhere, own_base
from cores.runtime.fingerprint import model_files

BASES = {"sft": "base", "reward": "sft", "ppo": "sft"}
"""The parent whose weights a stage's adapter goes on."""
SCRIPTS = {"sft": "stage1_sft.py", "reward": "stage2_rm.py", "ppo": "stage3_ppo.py"}
VERSION = 1
"""Of stage.json's form, and of an unfinished run's state.json; 0 where they name none."""


@dataclass(frozen=True)
class Parent:
    """A finished stage that this one starts from, or a model from elsewhere in its place."""

    stage: str
    folder: Path
    record: dict[str, Any]
    """stage.json, or what `found_elsewhere` tells."""

    @property
    def elsewhere(self) -> bool:
        """Whether no stage of this run wrote it."""
        return "source" in self.record

    @property
    def key(self) -> str:
        """Of the configuration: what its model, or the one that it was trained from, came by."""
        return f"{self.stage}.path" if self.elsewhere else "model.path"


def _again(stage: str) -> str:
    return f"{SCRIPTS[stage]} again with --overwrite"


def load_parents(
    config: Config,
    stages: list[str],
    hashed: bool = True,
    place: Callable[[Path], Path] = Path,
) -> dict[str, Parent]:
    """The finished stages named, checked for damage, fit and one template.

    UserError names every one that is missing. `hashed`: files are compared by their sha256, which
    one rank of a machine does for all. `place`: where this machine finds a stage's folder.
    """
    root = Path(config.output_dir).expanduser()
    places = {s: place(root / s) for s in stages}
    finished = [s for s in stages if (places[s] / "stage.json").exists()]
    given = [s for s in stages if elsewhere(config, s) is not None]
    for s in given:
        if s in finished:
            raise UserError(
                f"{s}.path is set to {getattr(config, s).path}, and {root / s} is a finished stage "
                f"too: which is meant? Remove the key (--{s}.path null), or give another "
                "--output_dir."
            )
    missing = [s for s in stages if s not in finished + given]
    if missing:
        folders = " and ".join(str(root / s) for s in missing)
        scripts = " and then ".join(SCRIPTS[s] for s in missing)
        raise UserError(
            f"{folders}: no finished stage there. Run {scripts} with the same --config and "
            f"--output_dir first, or set {' and '.join(f'{s}.path' for s in missing)}."
        )
    parents = {s: _parent(config, s, places[s], hashed) for s in stages}
    _check_fit(parents)
    return parents


def elsewhere(config: Config, stage: str) -> str | None:
    """The model that takes the stage's place, if one is given; of stage 3 none can be."""
    return getattr(getattr(config, stage), "path", None)


def _parent(config: Config, stage: str, folder: Path, hashed: bool) -> Parent:
    if elsewhere(config, stage) is not None:
        parent = Parent(stage, *found_elsewhere(config, stage, hashed))
    else:
        remedy = f"Run {_again(stage)}."
        parent = Parent(stage, folder, read_json(folder / "stage.json", remedy))
        _check_record(parent, remedy)
        _check_files(parent, hashed, remedy)
        if hashed:
            _check_base(parent)
    if stage == "sft" or not parent.record.get("chat"):  # of a reward model that reads texts
        _check_template(config, parent)
    if stage == "sft":
        _check_attention(config, parent)
    return parent


def policy_tokenizer(config: Config, policy: Parent) -> PreTrainedTokenizerBase:
    """The policy's, with the pad token that stage 1 would have given it."""
    tokenizer = load_tokenizer(policy.folder)
    if policy.elsewhere:
        settle_pad_token(tokenizer, config.model.pad_token)
    return tokenizer


def check_version(path: Path, record: dict[str, Any]) -> Any:
    """The version of the form of a record; UserError if a newer program wrote it."""
    version = record.get("version", 0)
    if type(version) is int and version > VERSION:
        raise UserError(
            f"{path}: written by a newer version of this program (form {version}; this one knows "
            f"{VERSION}). Update the program, or give another --output_dir."
        )
    return version


def _check_record(parent: Parent, remedy: str) -> None:
    """UserError unless its stage.json is of the form that stages write."""
    path, record = parent.folder / "stage.json", parent.record
    version = check_version(path, record)
    try:
        files, parents = record["files"], record["parents"].values()
        objects = [files, record["config"]["template"], *(p.get("files", {}) for p in parents)]
        names = [Path(name) for name in files]
        fits = {
            "stage": record["stage"] == parent.stage,
            "version": type(version) is int and version >= 0,
            "tokenizer": isinstance(record["tokenizer"], str),
            "vocab_size": type(record["vocab_size"]) is int,
            "objects": all(isinstance(value, dict) for value in objects) and bool(objects[1]),
            "files": any(name.suffix == ".safetensors" for name in names)
            and not any(name.is_absolute() or ".." in name.parts for name in names),
        }
        reason = ", ".join(f"unlike {key}" for key, good in fits.items() if not good)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
    if reason:
        raise UserError(f"{path}: damaged ({reason}). {remedy}")


def _check_files(parent: Parent, hashed: bool, remedy: str) -> None:
    folder = parent.folder
    found = model_files(folder, hashed)
    for name, digest in parent.record["files"].items():
        if name not in found:
            raise UserError(f"{folder / name}: missing; the checkpoint is damaged. {remedy}")
        if hashed and found[name] != digest:
            raise UserError(
                f"{folder / name}: not the file that the stage wrote (its sha256 is not "
                f"stage.json's); the checkpoint is damaged or was edited. {remedy}"
            )
    for name in found.keys() - parent.record["files"].keys():
        if name.endswith((".safetensors", ".bin", "adapter_config.json")):
            raise UserError(
                f"{folder / name}: the stage did not write it, and it would be loaded with what "
                f"it wrote. Take it away. {remedy}"
            )


def _check_base(parent: Parent) -> None:
    """An adapter alone needs the very model that it was trained on."""
    adapter = lone_adapter(parent.folder)
    if adapter is None:
        return
    base = base_of(parent.folder, adapter)
    parents = parent.record["parents"]
    trained_on = parents.get("base") or parents.get(BASES[parent.stage], {"files": {"": ""}})
    if "files" not in trained_on:  # on the hub
        return
    found = model_files(Path(base))
    if any(found.get(name) != digest for name, digest in trained_on["files"].items()):
        raise UserError(
            f"{parent.folder}: it holds an adapter alone, to the model in {base}, which is not "
            "the one that it was trained on any more (other files, by their sha256). Put that one "
            f"back, or run {_again(parent.stage)}."
        )


def _or_again(parent: Parent) -> str:
    return "" if parent.elsewhere else f", or run {_again(parent.stage)}"


def _check_template(config: Config, parent: Parent) -> None:
    theirs = parent.record["config"]["template"]
    then = _filled(plain(TemplateSection()), theirs)
    for key, mine in plain(config.template).items():
        if theirs and then[key] != mine:
            raise UserError(
                f"template.{key}: {mine!r} here, but {parent.folder} was trained with "
                f"{then[key]!r}: its model would see text it does not know. Use the same "
                f"template{_or_again(parent)}."
            )


def _filled(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` with the defaults of keys that were not there yet when it was written."""
    found = default | given
    nested = [k for k, v in default.items() if v and isinstance(v, dict)]
    return found | {k: _filled(default[k], v) for k in nested if isinstance(v := found[k], dict)}


def _check_attention(config: Config, parent: Parent) -> None:
    """UserError unless the policy attends as it was trained to."""
    mine = config.model.attention
    theirs = parent.record["config"].get("model", {}).get("attention", "causal")
    if theirs != mine:
        raise UserError(
            f"model.attention: {mine} here, but {parent.folder} was trained with {theirs}, and "
            f"would read prompts as it never did. Set model.attention {theirs}{_or_again(parent)}."
        )


def _check_fit(parents: dict[str, Parent]) -> None:
    """Reward model and policy must read the same ids."""
    first, *others = parents.values()
    for other in (parent for parent in others if not parent.elsewhere):
        own = other.stage == "reward" and "base" in other.record["parents"]  # rows of its own
        for key, name in (("tokenizer", "tokenizer"), ("vocab_size", "vocabulary size")):
            if other.record[key] != first.record[key] and not (own and key == "vocab_size"):
                raise UserError(
                    f"{other.folder}: its {name} ({str(other.record[key])[:12]}) is not that of "
                    f"{first.folder} ({str(first.record[key])[:12]}), so it would score other "
                    f"tokens. Run {_again(other.stage)}."
                )


def stale_parents(parents: dict[str, Parent]) -> list[str]:
    """A line for each parent that was trained from another version of a parent present, and what
    there is to say of those from elsewhere."""
    lines = []
    for parent in parents.values():
        lines += parent.record.get("notes", [])
        for name, facts in parent.record["parents"].items():
            now = parent_facts(parents).get(name, facts)
            if any(facts.get(key) != now.get(key) for key in ("files", "commit")):
                lines.append(
                    f"note: {parent.folder} was trained from an earlier {parents[name].folder}; "
                    f"run {SCRIPTS[parent.stage]} again if that was not meant"
                )
    return lines


def parent_facts(parents: dict[str, Parent]) -> dict[str, Any]:
    """The parents' fingerprints as stage.json keeps them."""
    return {
        name: parent.record.get("source")
        or {"folder": str(parent.folder), "files": parent.record["files"]}
        for name, parent in parents.items()
    }


def first_model(
    config: Config, parents: dict[str, Parent], tokenizer: PreTrainedTokenizerBase, hashed: bool
) -> tuple[Path, PretrainedConfig, dict[str, Any]]:
    """Folder and configuration of what stage 2 starts from, stage 1's model or `reward.base`, and
    the parents for stage.json; UserError if it can be no reward model."""
    folder, key, about = parents["sft"].folder, parents["sft"].key, parent_facts(parents)
    if (base := config.reward.base) is not None:
        key, (folder, about["base"]) = "reward.base", own_base(base, tokenizer, hashed)
    check_scalar(model := load_config(folder), key)
    check_length(model, config.reward.max_length, "reward.max_length")
    return folder, model, about
