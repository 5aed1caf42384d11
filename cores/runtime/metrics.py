"""One stream of metrics: JSON lines always, trackers when asked, a status line on the screen."""

import json
import time
from types import TracebackType

from cores.runtime.stage import StageFolder
from cores.runtime.trackers import finish_trackers, start_trackers


class Metrics:
    """Writes `metrics.jsonl` in the stage's folder on the main process, and the same values to
    `logging.trackers`; prints one line an entry."""

    def __init__(self, folder: StageFolder) -> None:
        self._launch = folder.launch
        self._start = time.monotonic()
        self._file = None
        if self._launch.is_main:
            self._file = (folder.path / "metrics.jsonl").open("w", encoding="utf-8")
            self._trackers = start_trackers(folder.config, folder.stage, folder.path)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all files: the folder is moved next."""
        if self._file:
            self._file.close()
            for line in finish_trackers(self._trackers):
                self._launch.say(line)

    def log(self, step: int, values: dict[str, float], line: str) -> None:
        """Write `values` under `step` (an optimizer step or an update), and print `line`."""
        if self._file is None:
            return
        row = {"seconds": round(time.monotonic() - self._start, 3), **values}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(row, step=step)
        self._launch.say(line)
