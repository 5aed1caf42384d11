"""One stream of metrics: JSON lines always, trackers when asked, a status line on the screen."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cores.config import Config
from cores.errors import UserError
from cores.files import not_finite
from cores.run.trackers import finish_trackers, start_trackers
from cores.runtime.launch import Launch


class Metrics:
    """Appends to `metrics.jsonl` on the main process, and gives the same values to
    `logging.trackers`. A tracker that fails is left out from there on, and said: it may cost
    nothing else."""

    def __init__(self, config: Config, stage: str, folder: Path, launch: Launch) -> None:
        self.path = folder / "metrics.jsonl"
        self.launch = launch
        self.trackers: list[Any] = []
        self.last: dict[str, float] = last_row(self.path) if launch.is_main else {}
        """The newest row."""
        if launch.is_main:
            self._try("start", lambda: self._start(config, stage, folder))

    def _start(self, config: Config, stage: str, folder: Path) -> None:
        self.trackers = start_trackers(config, stage, folder)

    def _try(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever somebody else's library raises
            self.trackers = []
            reason = f"{type(error).__name__}: {error}"
            self.launch.say(f"note: trackers fail to {what} ({reason}); metrics.jsonl goes on")

    def log(self, step: int, values: Mapping[str, float], line: str) -> None:
        """Write `values` under `step` (an optimizer step or an update), and print `line`."""
        if not self.launch.is_main:
            return
        append(self.path, {"step": step, **values})
        self.last = {"step": step, **values}
        for tracker in self.trackers:
            self._try("log", partial(tracker.log, dict(values), step=step))
        self.launch.say(line)

    def close(self) -> None:
        """Close the trackers: the folder is moved next."""

        def finish() -> None:
            for line in finish_trackers(self.trackers):
                self.launch.say(line)

        self._try("finish", finish)
        self.trackers = []


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file of JSON lines."""
    for key in not_finite(row):
        raise UserError(
            f"{path}: {key} is no finite number at step {row.get('step', row.get('update'))}: "
            "something has gone wrong before. Look at the rows before it."
        )
    line = json.dumps(row, ensure_ascii=False) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def cut(path: Path, key: str, last: int) -> None:
    """Take out the rows behind `last`: they are made again. Half a row, of a kill, goes as well."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)[key] <= last:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    path.write_text("".join(kept), encoding="utf-8")


def last_row(path: Path) -> dict[str, Any]:
    """The last row of a file of JSON lines; empty where there is none."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1]) if lines else {}
