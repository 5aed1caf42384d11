"""Stage folders: written whole or not at all."""

import contextlib
import json
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import PartialState

from cores.config import Config, plain
from cores.errors import UserError
from cores.runtime.cli import ON_STOP
from cores.runtime.fingerprint import model_files, versions
from cores.runtime.launch import Launch

OWNER = "process"
"""File of a partial folder that names the process writing it."""
REMOVALS = 3
"""Attempts at removing a partial folder, as the training may be writing into it."""


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
