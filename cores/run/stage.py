"""A run of one stage, from the claim of its folder to the finished stage."""

import shlex
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from cores.config import Config, plain
from cores.errors import UserError
from cores.files import write_json
from cores.run import checkpoint
from cores.run.beside import Beside
from cores.run.borrow import borrowed
from cores.run.card import card
from cores.run.checkpoint import Checkpoint, State
from cores.run.folder import CHECKPOINTS, Folder, command
from cores.run.metrics import Metrics, append
from cores.run.progress import Progress, described, onward
from cores.runtime.fingerprint import model_files, versions
from cores.runtime.launch import Launch
from cores.runtime.machines import MACHINES
from cores.runtime.parents import VERSION
from cores.runtime.screen import LOG, show_everything
from cores.runtime.stop import STOP, Stopped

T = TypeVar("T")


class StageRun:
    """The one owner of what a run writes. As a context manager: whatever goes wrong within, what
    was trained stays, and the next run may begin."""

    metrics: Metrics
    """From `begin` on."""

    def __init__(self, config: Config, stage: str, launch: Launch, started: float) -> None:
        self.config, self.stage, self.launch = config, stage, launch
        self.started = started
        """Seconds of the clock `time.monotonic`."""
        self.folder = Folder(config, stage, launch)
        self.final, self.path = self.folder.final, self.folder.path
        self.resumed: Checkpoint | None = None
        """What the run goes on from."""
        self.saved = 0
        """Step of the newest checkpoint."""
        self.saved_at = time.monotonic()
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        """The checkpoint that is being written."""
        self.beside: Beside | None = None
        """On the main process, from `begin` on."""
        self.seconds_before = 0.0
        """What the run took before it was stopped."""
        self.progress: Progress | None = None
        """On the main process, once there are steps."""
        self.copies: list[Path] = []
        """Temporary folders of this machine."""

    def claim(self) -> None:
        """Take the stage's place before anything heavy happens, and find what to go on from; not
        where data is looked at alone.

        UserError if another run has it, if it cannot be written, if a finished stage stands there
        without `overwrite`, or if an unfinished run was begun with other options.
        """
        if self.config.data.inspecting:
            return
        found = self.folder.claim() if self.launch.is_main else None
        self.resumed = self.launch.shared(found)
        if MACHINES.several and self.config.resume != "never":
            self._check_place()
        if self.resumed is not None:
            folder = self.place(self.resumed.folder, checkpoint.MANIFEST)
            self.resumed = replace(self.resumed, folder=folder)
            self.saved = self.resumed.step
            self.seconds_before = self.resumed.numbers["seconds"]

    def _check_place(self) -> None:
        """UserError on every rank if another machine has a newer checkpoint than the main process,
        whose disk counts: the machines have changed places, perhaps."""
        steps = checkpoint.steps(self.path / CHECKPOINTS)
        host, theirs = self.launch.shared((socket.gethostname(), steps))

        def check() -> None:
            if steps[:1] > theirs[:1]:
                raise UserError(
                    f"{socket.gethostname()}: {self.path} has a checkpoint of step {steps[0]}, but "
                    f"{host}, which as machine 0 reads and writes them, has none that new. Start "
                    "with the other one as machine 0, copy the folder there, or begin anew with "
                    "--resume never."
                )

        self.launch.together(check)

    def place(self, folder: Path, mark: str = "stage.json") -> Path:
        """Where this machine finds what the main process has in `folder`: see `borrowed`."""
        found = borrowed(self.launch, folder, mark)
        if found != folder:
            self.copies.append(found.parent)
        return found

    def begin(self, facts: dict[str, Any]) -> None:
        """Make the folder. `facts` are what the steps depend on beside the configuration (parents,
        data): an unfinished run goes on with the same alone, UserError otherwise."""
        if self.launch.is_main:
            self.folder.begin(facts, self.resumed)
        behind = None if self.resumed is None else self.resumed.step
        named = self.folder.state.get("run", "")
        self.metrics = Metrics(self.config, self.stage, self.path, self.launch, named, behind)
        if self.launch.is_main:
            self.beside = Beside(self.config, self.stage, self.path, self.launch, facts)
        self.saved_at = time.monotonic()

    def going_on(self, total: int, model: Any) -> None:
        """Say what is trained, and where the run goes on, if it does; steps begin now."""
        about = described(model, self.config, self.launch)
        self.launch.say(f"{self.stage}: {about}, {total} steps")
        if self.launch.is_main:
            self.progress = Progress(self.stage, total, self.saved, self.launch.device)
        if self.resumed is not None:
            self.launch.say(f"resuming {self.stage} at step {self.saved} of {total}")
        STOP.how, STOP.stepping = command(self.config), True

    def look(self, step: int, last: bool) -> tuple[bool, bool]:
        """Behind a step: whether to save, and whether to stop; the same on every rank."""
        c, now = self.config.checkpoint, time.monotonic()
        if self.progress is not None:
            self.progress.step(step)
        if self.writing is not None and self.writing.done():
            self.written()  # or its error
        by_steps = c.every_steps is not None and step % c.every_steps == 0
        by_time = c.every_minutes is not None and now - self.saved_at >= 60 * c.every_minutes
        limit = c.stop_after_minutes
        if limit is not None and now - self.started >= 60 * limit and STOP.reason is None:
            STOP.reason = f"checkpoint.stop_after_minutes {limit:g}"
        due, told = self.launch.agree(by_steps or by_time or last, STOP.reason is not None)
        return bool(due or told), bool(told)

    @property
    def seconds(self) -> float:
        """What the run has taken, over all its parts."""
        return self.seconds_before + time.monotonic() - self.started

    def save(self, step: int, state: State) -> None:
        """Write a checkpoint beside the next steps, then let old ones go."""
        if step == self.saved:
            return
        if self.launch.is_main:
            self.written()
            numbers = {**state.numbers, "seconds": self.seconds}
            self.writing = self.writer.submit(self._write, step, State(state.tensors, numbers))
        self.saved, self.saved_at = step, time.monotonic()

    def _write(self, step: int, state: State) -> None:
        checkpoint.write(self.path / CHECKPOINTS, step, state)
        checkpoint.rotate(self.path / CHECKPOINTS, self.config.checkpoint.keep)

    def written(self) -> None:
        """Wait until the newest checkpoint is on the disk. OSError if it could not be written."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def leave(self, step: int, total: int) -> None:
        """Behind a checkpoint: end the run; it goes on another time."""
        self.written()
        reason = STOP.reason or "another rank was told to stop"
        raise Stopped(f"{reason}: saved at step {step} of {total}; to go on:\n{STOP.how}")

    def stepped(self) -> None:
        """The last step is behind a checkpoint: what follows can be done again."""
        self.written()
        STOP.stepping = False

    def optional(self, what: str, action: Callable[[], T]) -> T | None:
        """What `action` returns; None, and a line, if it fails: no reason to lose the stage."""
        try:
            return action()
        except Stopped:
            raise
        except Exception as error:
            if self.launch.world > 1 and not getattr(error, "everywhere", False):
                raise  # of this rank alone, in the middle of what the others wait for
            known = isinstance(error, UserError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            with LOG.quoting():
                self.launch.say(f"note: {what} failed and is left out: {reason}")
            return None

    def log(self, step: int, values: dict[str, float], figures: str) -> None:
        """A row of metrics.jsonl, and its `figures` on the screen when a line is due."""
        values = {"seconds": round(self.seconds, 3), **values}
        self.metrics.log(step, values)
        if self.progress is not None:
            self.progress.note(step, figures)
        if self.beside is not None:  # it speaks of the line above
            self.beside.row({"step": step, **values})

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Rows of another file of JSON lines."""
        if self.launch.is_main:
            for row in rows:
                append(self.path / name, row)

    def samples(
        self, name: str, make: Callable[[], list[dict[str, Any]]], anew: bool = False
    ) -> list[dict[str, Any]]:
        """Rows of a file with prompts and replies, which are returned, unless `logging.samples` is
        false; `anew`: in place of those there are."""
        if self.config.logging.samples and self.launch.is_main:
            if anew:
                (self.path / name).unlink(missing_ok=True)
            self.append(name, rows := make())
            return rows
        return []

    def last_row(self) -> dict[str, float]:
        """The newest metrics, without their step and time."""
        row = self.metrics.last if self.launch.is_main else {}
        return {k: round(v, 6) for k, v in row.items() if k not in ("step", "seconds")}

    def finish(self, save: Callable[[Path], None], facts: dict[str, Any]) -> None:
        """Write the models by `save` and stage.json from `facts`, and put the stage in its place.

        Every rank returns when the folder is in place: a launch may go on to the stage that needs
        it. The older stage is there until the new one is.
        """
        self.stepped()
        save(self.path)
        self.metrics.close()
        if self.beside is not None:
            self.beside.end(facts)
            self._record(facts)
            self.folder.publish()
            self.launch.say(f"wrote {self.final} in {self.seconds:.0f} s")
            self.beside.report()
            follows = onward(shlex.split(command(self.config)), self.stage, self.config)
            if follows is not None:
                self.launch.say(f"next: {follows}")
        self.launch.agree(False)

    def _record(self, facts: dict[str, Any]) -> None:
        record = {
            "version": VERSION,
            "stage": self.stage,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 2),
            "processes": self.launch.world,
            "command": self.folder.state["resume"],
            **facts,
            "files": model_files(self.path),
            "versions": versions(),
            "config": plain(self.config),
        }
        (self.path / "README.md").write_text(card(record), encoding="utf-8")
        write_json(self.path / "stage.json", record)

    def __enter__(self) -> "StageRun":
        STOP.reason, STOP.stepping = None, False
        show_everything()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        STOP.stepping = False
        for copy in self.copies if self.launch.is_local_main else ():
            shutil.rmtree(copy, ignore_errors=True)
        if self.launch.is_main:
            self.writer.shutdown()  # a checkpoint that is under way is finished
            self.folder.leave(error)
            if error is not None and self.beside is not None:
                self.beside.report()  # why it ended
