"""A run of one stage, from the claim of its folder to the finished stage.

`<output_dir>/<stage>.unfinished` holds everything until the stage is whole and takes the place of
`<output_dir>/<stage>`: metrics, samples, what the screen said, and checkpoints to go on from.
"""

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil

from cores.config import Config, plain
from cores.errors import UserError
from cores.files import read_json, write_json
from cores.run import checkpoint
from cores.run.checkpoint import Checkpoint, State
from cores.run.files import exchange, settle, sync_tree
from cores.run.keys import differing
from cores.run.lock import Lock
from cores.run.metrics import Metrics, append, cut
from cores.runtime.fingerprint import model_files, versions
from cores.runtime.launch import Launch
from cores.runtime.screen import LOG, show_everything
from cores.runtime.stop import STOP, Stopped

T = TypeVar("T")
STATE, RECORD, CHECKPOINTS = "state.json", "stage.json", "checkpoints"
VERSION = 1
"""Of state.json and stage.json."""
ROWS = {"metrics.jsonl": "step", "samples.jsonl": "update", "evaluations.jsonl": "update"}
"""Files that grow with the steps, and the key that says at which."""
REPLACE = "Give --overwrite to replace it, or another --output_dir."


class StageRun:
    """The one owner of what a run writes. As a context manager: whatever goes wrong within, what
    was trained stays, and the next run may begin."""

    def __init__(self, config: Config, stage: str, launch: Launch, started: float) -> None:
        self.config = config
        self.stage = stage
        self.launch = launch
        self.started = started
        """Seconds of the clock `time.monotonic`."""
        self.final = Path(config.output_dir).expanduser().absolute() / stage
        self.path = self.final.with_name(f"{stage}.unfinished")
        self.lock = Lock(self.final.with_name(f".{stage}.lock"))
        self.resumed: Checkpoint | None = None
        """What the run goes on from."""
        self.metrics: Metrics | None = None
        self.saved = 0
        """Step of the newest checkpoint."""
        self.saved_at = time.monotonic()
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        """The checkpoint that is being written."""
        self.seconds_before = 0.0
        """What the run took before it was stopped."""

    def claim(self) -> None:
        """Take the stage's place before anything heavy happens, and find what to go on from.

        UserError if another run has it, if it cannot be written, if a finished stage stands there
        without `overwrite`, or if an unfinished run was begun with other options.
        """
        place = None
        if self.launch.is_main:
            self._claim()
            place = (self.resumed.folder, self.resumed.step) if self.resumed else None
        place = self.launch.shared(place)
        if place is not None and self.resumed is None:
            folder, step = place
            self.resumed = Checkpoint(folder, step, read_json(folder / checkpoint.NUMBERS))
        if self.resumed is not None:
            self.saved = self.resumed.step
            self.seconds_before = self.resumed.numbers["seconds"]

    def _claim(self) -> None:
        if LOG.path is not None:  # a run before this one in the same process has failed
            LOG.attach(None)
        if (note := self.lock.take()) is not None:
            self.launch.say(note)
        settle(self.final)
        if (self.final / STATE).exists():  # killed when all but this was done
            _clean(self.final)
        if self.path.exists() and not (self.path / STATE).exists():
            shutil.rmtree(self.path)  # the older stage, replaced by a run that was killed then
        if self.config.resume == "never" and self.path.exists():
            self.launch.say(f"--resume never: removes {self.path} ({self._contents()})")
            shutil.rmtree(self.path)
        begun = read_json(self.path / STATE) if self.path.exists() else {}
        if begun.get("version", 0) > VERSION:
            raise UserError(
                f"{self.path / STATE}: written by a newer version of this program (form "
                f"{begun['version']}; this one knows {VERSION}). Update the program, or give "
                "another --output_dir."
            )
        self.resumed, notes = checkpoint.newest(self.path / CHECKPOINTS)
        for note in notes:
            self.launch.say(note)
        if self.final.exists() and not (self.config.overwrite or begun.get("overwrite")):
            raise UserError(f"{self.final}: exists already. {REPLACE}")
        if self.resumed is not None and (keys := differing(begun["config"], self.config)):
            raise UserError(
                f"{self.path}: an unfinished run with other options stands there, at step "
                f"{self.resumed.step}: {'; '.join(keys)}. Give the same options to go on, "
                "--resume never to remove it and begin anew, or another --output_dir."
            )

    def _contents(self) -> str:
        found = checkpoint.steps(self.path / CHECKPOINTS)
        newest = f"the newest at step {found[0]}" if found else "nothing to go on from"
        return f"{len(found)} checkpoint{'s' * (len(found) != 1)}, {newest}"

    def begin(self, facts: dict[str, Any]) -> None:
        """Make the folder. `facts` are what the steps depend on beside the configuration (parents,
        data): an unfinished run goes on with the same alone, UserError otherwise."""
        if self.launch.is_main:
            if self.resumed is not None:
                self._same(facts)
            self.path.mkdir(exist_ok=True)
            for name, key in ROWS.items():
                cut(self.path / name, key, self.saved)
            self._write_state(None, facts)
            LOG.attach(self.path / "log.txt")
        self.metrics = Metrics(self.config, self.stage, self.path, self.launch)
        self.saved_at = time.monotonic()

    def _same(self, facts: dict[str, Any]) -> None:
        before = read_json(self.path / STATE)["facts"]
        changed = [name for name in facts if before.get(name) != facts[name]]
        if "reward_files" in changed:  # a function that failed may be mended
            changed.remove("reward_files")
            self.launch.say("note: the files of ppo.rewards are not those that the run began with")
        if changed:
            raise UserError(
                f"{self.path}: {' and '.join(changed)} are not what the unfinished run began with "
                "(other files or rows). Put them back to go on, or give --resume never to begin "
                "anew."
            )

    def _write_state(self, stopped: str | None, facts: dict[str, Any] | None = None) -> None:
        old = read_json(self.path / STATE) if facts is None else {}
        write_json(
            self.path / STATE,
            {
                "version": VERSION,
                "stage": self.stage,
                "stopped": stopped,
                "resume": command(),
                "directory": os.getcwd(),
                "overwrite": self.config.overwrite or old.get("overwrite", False),
                "facts": old.get("facts") if facts is None else facts,
                "config": plain(self.config),
            },
        )

    def going_on(self, total: int) -> None:
        """Say where the run goes on, if it does; steps begin now."""
        if self.resumed is not None:
            self.launch.say(f"resuming {self.stage} at step {self.saved} of {total}")
        STOP.stepping = True

    def look(self, step: int, last: bool) -> tuple[bool, bool]:
        """Behind a step: whether to save, and whether to stop; the same on every rank."""
        c, now = self.config.checkpoint, time.monotonic()
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
        raise Stopped(f"{reason}: saved at step {step} of {total}; to go on: {command()}")

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
            known = isinstance(error, UserError)
            if self.launch.world > 1 and not known:
                raise  # of this rank alone, in the middle of what the others wait for
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            self.launch.say(f"note: {what} failed and is left out: {reason}")
            return None

    def log(self, step: int, values: dict[str, float], line: str) -> None:
        """A row of metrics.jsonl, and a line on the screen."""
        assert self.metrics is not None, "begin comes first"
        self.metrics.log(step, {"seconds": round(self.seconds, 3), **values}, line)

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Rows of another file of JSON lines."""
        if self.launch.is_main:
            for row in rows:
                append(self.path / name, row)

    def rewrite(self, name: str, rows: list[dict[str, Any]]) -> None:
        """The rows of a file that is made at once."""
        if self.launch.is_main:
            (self.path / name).unlink(missing_ok=True)
            self.append(name, rows)

    def last_row(self) -> dict[str, float]:
        """The newest metrics, without their step and time."""
        assert self.metrics is not None, "begin comes first"
        row = self.metrics.last if self.launch.is_main else {}
        return {k: round(v, 6) for k, v in row.items() if k not in ("step", "seconds")}

    def finish(self, save: Callable[[Path], None], facts: dict[str, Any]) -> None:
        """Write the models by `save` and stage.json from `facts`, and put the stage in its place.

        Every rank returns when the folder is in place: a launch may go on to the stage that needs
        it. The older stage is there until the new one is.
        """
        STOP.stepping = False
        save(self.path)
        assert self.metrics is not None, "begin comes first"
        self.metrics.close()
        if self.launch.is_main:
            self._record(facts)
            self._publish()
        self.launch.agree(False)

    def _record(self, facts: dict[str, Any]) -> None:
        record = {
            "version": VERSION,
            "stage": self.stage,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 2),
            "processes": self.launch.world,
            **facts,
            "files": model_files(self.path),
            "versions": versions(),
            "config": plain(self.config),
        }
        write_json(self.path / RECORD, record)

    def _publish(self) -> None:
        sync_tree(self.path)
        if self.final.exists():
            exchange(self.path, self.final)
        else:
            self.path.rename(self.final)
        LOG.attach(self.final / "log.txt")
        _clean(self.final)
        shutil.rmtree(self.path, ignore_errors=True)  # the older stage
        self.launch.say(f"wrote {self.final} in {self.seconds:.0f} s")

    def __enter__(self) -> "StageRun":
        STOP.reason, STOP.stepping = None, False
        show_everything()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        STOP.stepping = False
        if not self.launch.is_main:
            return
        self.writer.shutdown()  # a checkpoint that is under way is finished
        if error is None or LOG.path is None:
            LOG.attach(None)  # else what is said of the error is yet to come
        if error is not None and (self.path / STATE).exists() and self.lock.number is not None:
            with contextlib.suppress(OSError):  # the disk is full: the folder stays as it is
                self._write_state(f"{kind.__name__ if kind else ''}: {error}"[:2000])
        self.lock.release()


def _clean(folder: Path) -> None:
    """Take out of a finished stage what only an unfinished one needs."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    (folder / STATE).unlink(missing_ok=True)


def command() -> str:
    """What was typed to start this run, its launcher included."""
    words = [Path(sys.executable).name, *sys.argv]
    if "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        with contextlib.suppress(psutil.Error):  # it is gone
            words = psutil.Process(os.getppid()).cmdline() or words
    return shlex.join(words)
