"""Finished stages that a stage starts from: checked for damage and fit before they are used."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cores.config import Config, plain
from cores.errors import UserError
from cores.models.lora import base_of, lone_adapter
from cores.runtime.fingerprint import model_files

BASES = {"sft": "base", "reward": "sft"}
"""The parent whose weights a stage's adapter goes on."""
SCRIPTS = {"sft": "stage1_sft.py", "reward": "stage2_rm.py", "ppo": "stage3_ppo.py"}


@dataclass(frozen=True)
class Parent:
    """A finished stage that this one starts from."""

    stage: str
    folder: Path
    record: dict[str, Any]


def load_parents(config: Config, stages: list[str]) -> dict[str, Parent]:
    """The finished stages named, checked for damage, fit and one template.

    UserError names every one that is missing.
    """
    root = Path(config.output_dir).expanduser()
    missing = [s for s in stages if not (root / s / "stage.json").is_file()]
    if missing:
        folders = " and ".join(str(root / s) for s in missing)
        scripts = " and then ".join(SCRIPTS[s] for s in missing)
        raise UserError(
            f"{folders}: no finished stage there. Run {scripts} with the same --config and "
            "--output_dir first."
        )
    parents = {s: Parent(s, root / s, _record(root / s)) for s in stages}
    for parent in parents.values():
        _check_files(parent)
        _check_base(parent)
        _check_template(config, parent)
    _check_fit(parents)
    return parents


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        record["files"], record["tokenizer"], record["vocab_size"], record["config"]["template"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{folder / 'stage.json'}: damaged ({reason}). Run {SCRIPTS[folder.name]} again with "
            "--overwrite."
        ) from None
    return record


def _check_files(parent: Parent) -> None:
    remedy = f"Run {SCRIPTS[parent.stage]} again with --overwrite."
    found = model_files(parent.folder)
    for name, digest in parent.record["files"].items():
        path = parent.folder / name
        if name not in found:
            raise UserError(f"{path}: missing; the checkpoint is damaged. {remedy}")
        if found[name] != digest:
            raise UserError(
                f"{path}: not the file that the stage wrote (its sha256 is not stage.json's); the "
                f"checkpoint is damaged or was edited. {remedy}"
            )


def _check_base(parent: Parent) -> None:
    """An adapter alone needs the very model that it was trained on."""
    adapter = lone_adapter(parent.folder)
    if adapter is None:
        return
    base = base_of(parent.folder, adapter)
    trained_on = parent.record["parents"][BASES[parent.stage]]
    if "files" not in trained_on:  # on the hub
        return
    found = model_files(Path(base))
    if any(found.get(name) != digest for name, digest in trained_on["files"].items()):
        raise UserError(
            f"{parent.folder}: it holds an adapter alone, to the model in {base}, which is not "
            "the one that it was trained on any more (other files, by their sha256). Put that one "
            f"back, or run {SCRIPTS[parent.stage]} again with --overwrite."
        )


def _check_template(config: Config, parent: Parent) -> None:
    theirs = parent.record["config"]["template"]
    for key, mine in plain(config.template).items():
        if theirs.get(key) != mine:
            raise UserError(
                f"template.{key}: {mine!r} here, but {parent.folder} was trained with "
                f"{theirs.get(key)!r}: its model would see text it does not know. Use the same "
                f"template, or run {SCRIPTS[parent.stage]} again with --overwrite."
            )


def _check_fit(parents: dict[str, Parent]) -> None:
    """Reward model and policy must read the same ids."""
    first, *others = parents.values()
    for other in others:
        for key, name in (("tokenizer", "tokenizer"), ("vocab_size", "vocabulary size")):
            if other.record[key] != first.record[key]:
                raise UserError(
                    f"{other.folder}: its {name} ({str(other.record[key])[:12]}) is not that of "
                    f"{first.folder} ({str(first.record[key])[:12]}), so it would score other "
                    f"tokens. Run {SCRIPTS[other.stage]} again with --overwrite."
                )


def stale_parents(parents: dict[str, Parent]) -> list[str]:
    """A line for each parent that was trained from another version of a parent present."""
    lines = []
    for parent in parents.values():
        for name, facts in parent.record["parents"].items():
            if name in parents and facts["files"] != parents[name].record["files"]:
                lines.append(
                    f"note: {parent.folder} was trained from an earlier {parents[name].folder}; "
                    f"run {SCRIPTS[parent.stage]} again if that was not meant"
                )
    return lines


def parent_facts(parents: dict[str, Parent]) -> dict[str, Any]:
    """The parents' fingerprints as stage.json keeps them."""
    return {
        name: {"folder": str(parent.folder), "files": parent.record["files"]}
        for name, parent in parents.items()
    }
