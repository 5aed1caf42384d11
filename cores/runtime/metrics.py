"""One stream of metrics: JSON lines always, TensorBoard when asked, a status line on the screen."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from cores.runtime.launch import Launch


class Metrics:
    """Writes `metrics.jsonl` in `folder` on the main process, and prints one line an entry."""

    def __init__(self, folder: Path, launch: Launch, tensorboard: bool) -> None:
        self._launch = launch
        self._start = time.monotonic()
        self._file = None
        self._board: Any = None
        if launch.is_main:
            self._file = (folder / "metrics.jsonl").open("w", encoding="utf-8")
            self._board = _board(folder / "tensorboard") if tensorboard else None

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def log(self, step: int, values: dict[str, float], line: str) -> None:
        """Write `values` under `step` (an optimizer step or an update), and print `line`."""
        if self._file is None:
            return
        seconds = round(time.monotonic() - self._start, 3)
        self._file.write(json.dumps({"step": step, "seconds": seconds, **values}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._launch.say(line)


def _board(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
