"""Stage folders: written whole or not at all, and checked before they are built upon."""

import contextlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import PartialState

from cores.config import Config, plain
from cores.errors import UserError
from cores.models.lora import base_of, lone_adapter
from cores.runtime.cli import ON_STOP
from cores.runtime.fingerprint import model_files, versions
from cores.runtime.launch import Launch

OWNER = "process"
"""File of a partial folder that names the process writing it."""
REMOVALS = 3
"""Attempts at removing a partial folder, as the training may be writing into it."""
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


class StageFolder:
    """`<output_dir>/<stage>`, built beside its place and moved there when it is complete.

    As a context manager: whatever goes wrong inside, no partial folder stays behind.
    """

    def __init__(self, config: Config, stage: str, launch: Launch, started: float) -> None:
        self.config = config
        self.stage = stage
        self.launch = launch
        self.started = started
        self.final = Path(config.output_dir).expanduser() / stage
        self.path = self.final.with_name(f".{stage}.partial")
        """Where this run writes; the same on every rank."""

    def check(self) -> None:
        """UserError if the folder exists and `overwrite` is off, or if it cannot be written."""
        if self.final.exists() and not self.config.overwrite:
            raise UserError(
                f"{self.final}: exists already. Give --overwrite to replace it, or another "
                "--output_dir."
            )
        root = self.final.parent
        while not root.exists():
            root = root.parent
        if not root.is_dir():
            raise UserError(f"output_dir: {root} is a file, not a folder. Choose another folder.")

    def __enter__(self) -> "StageFolder":
        if self.launch.is_main:
            self._claim()
        ON_STOP.append(self._remove)  # on every rank: the main one may be what was killed
        return self

    def _claim(self) -> None:
        """Make the partial folder; UserError while another run on this machine writes to it."""
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            owner = _running(self.path / OWNER)
            if owner is not None:
                raise UserError(
                    f"{self.path}: process {owner} is writing this stage now. Wait for it, stop "
                    "it, or give another --output_dir."
                ) from None
            shutil.rmtree(self.path)  # of a run that was killed
            self.path.mkdir()
        (self.path / OWNER).write_text(str(os.getpid()), encoding="utf-8")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            ON_STOP.remove(self._remove)
        elif self.launch.is_main:
            self._remove()

    def _remove(self) -> None:
        """The partial folder, and `output_dir` if nothing else is in it."""
        for _ in range(REMOVALS):
            shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty, or another rank was faster
            self.final.parent.rmdir()

    def finish(self, facts: dict[str, Any]) -> None:
        """Write stage.json from `facts` and move the folder to its place (the main process does).

        `facts` holds what the stage knows: tokenizer, vocab_size, data, parents, metrics. Every
        rank returns when the folder is in place: a launch may go on to the stage that needs it.
        """
        if self.launch.is_main:
            self._write(facts)
        PartialState().wait_for_everyone()

    def _write(self, facts: dict[str, Any]) -> None:
        record = {
            "stage": self.stage,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.started, 2),
            "processes": self.launch.world,
            **facts,
            "files": model_files(self.path),
            "versions": versions(),
            "config": plain(self.config),
        }
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (self.path / "stage.json").write_text(text + "\n", encoding="utf-8")
        old = self.final.with_name(f".{self.stage}.old")
        shutil.rmtree(old, ignore_errors=True)
        self.check()  # again: another run may have finished in the meantime
        (self.path / OWNER).unlink()
        if self.final.exists():
            self.final.rename(old)
        self.path.rename(self.final)
        shutil.rmtree(old, ignore_errors=True)
        self.launch.say(f"wrote {self.final} in {record['seconds']:.0f} s")


def _running(owner: Path) -> int | None:
    """The live process named in the file `owner`, if it is not this one."""
    try:
        number = int(owner.read_text(encoding="utf-8"))
        os.kill(number, 0)
    except (OSError, ValueError):
        return None
    return None if number == os.getpid() else number


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
