"""One stream of metrics: JSON lines always, trackers when asked, a status line on the screen."""

import contextlib
import html
import io
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from cores.config import Config, plain
from cores.errors import UserError
from cores.files import not_finite
from cores.report import json_lines
from cores.run.folder import flat
from cores.runtime.launch import Launch


class Metrics:
    """Appends to `metrics.jsonl` on the main process, and gives the same values to
    `logging.trackers`. A tracker that fails is left out from there on, and said: it may cost
    nothing else."""

    def __init__(
        self,
        config: Config,
        stage: str,
        folder: Path,
        launch: Launch,
        name: str = "",
        resumed: int | None = None,
    ) -> None:
        """`name`: by which trackers know the run again that goes on behind step `resumed`."""
        self.path = folder / "metrics.jsonl"
        self.stage, self.launch = stage, launch
        self.trackers: list[Any] = []
        self.last: dict[str, float] = {}
        """The newest row, on the main process."""
        if launch.is_main:
            self.last = (json_lines(self.path) or [{}])[-1]
            start = partial(start_trackers, config, stage, folder, name, resumed)
            self._try("start", lambda: self.trackers.extend(start()))

    def _try(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever somebody else's library raises
            self.trackers = []
            reason = f"{type(error).__name__}: {error}"
            self.launch.say(f"note: trackers fail to {what} ({reason}); metrics.jsonl goes on")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write `values` under `step` (an optimizer step or an update)."""
        if not self.launch.is_main:
            return
        append(self.path, {"step": step, **values})
        self.last = {"step": step, **values}
        self._track(step, {f"{self.stage}/{name}": x for name, x in values.items()})

    def held_out(self, step: int, values: Mapping[str, Any]) -> None:
        """Give the trackers figures on held-out rows; those that are no number are left out."""
        numbers = {name: x for name, x in values.items() if isinstance(x, int | float)}
        self._track(step, {f"{self.stage}/held_out/{name}": x for name, x in numbers.items()})

    def _track(self, step: int, values: dict[str, Any]) -> None:
        for tracker in self.trackers:
            self._try("log", partial(tracker.log, dict(values), step=step))

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Give the trackers prompts, replies and their scores, as a table."""
        for tracker in self.trackers:
            self._try("log", partial(show, tracker, f"{self.stage}/samples", step, rows))

    def close(self) -> None:
        """Close the trackers: the folder is moved next."""
        self._try("finish", self._finish)
        self.trackers = []

    def _finish(self) -> None:
        for tracker in self.trackers:
            settings = tracker.tracker.settings if tracker.name == "wandb" else None
            tracker.finish()
            if settings and settings.mode == "offline":
                say = f"wandb is offline; `wandb sync {settings.sync_dir}` sends this run"
                self.launch.say(say)


class _QuietTrackio(TrackioTracker):
    """Without trackio's seven lines on the screen, and without a second goodbye at exit."""

    def start(self) -> None:
        """Begin the run."""
        with contextlib.redirect_stdout(io.StringIO()):
            super().start()

    def finish(self) -> None:
        """End the run; trackio's own function also forgets it."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()


def start_trackers(
    config: Config, stage: str, folder: Path, name: str = "", resumed: int | None = None
) -> list[GeneralTracker]:
    """The trackers of `logging.trackers`, begun, with the configuration as their hyperparameters.

    The run is named `<output_dir's name>/<stage>`. TensorBoard writes to `folder`/tensorboard, W&B
    to <output_dir>/wandb, trackio to its own place (TRACKIO_DIR). One that goes on behind step
    `resumed` is the same run there: `name` is its id.
    """
    root = Path(config.output_dir).expanduser()
    project, run, settings = config.logging.project, f"{root.name}/{stage}", flat(plain(config))
    trackers: list[GeneralTracker] = []
    for kind in dict.fromkeys(config.logging.trackers):
        if kind == "tensorboard":
            behind = None if resumed is None else resumed + 1
            made = TensorBoardTracker("tensorboard", logging_dir=folder, purge_step=behind)
            trackers.append(made)
        elif kind == "wandb":
            mode = os.environ.get("WANDB_MODE", "offline")  # a run must not wait for a login
            console = "auto" if config.logging.samples else "off"  # what the screen says
            quiet = {"silent": mode == "offline", "console": console}
            options = {"dir": str(root), "mode": mode, "config": settings, "settings": quiet}
            options |= {"id": name} if name else {}
            options |= {"resume": "allow"} if resumed is not None and mode == "online" else {}
            trackers.append(WandBTracker(project, name=run, **options))
        else:
            again = "never" if resumed is None else "allow"
            trackers.append(_QuietTrackio(project, name=run, config=settings, resume=again))
        trackers[-1].start()
        if kind == "tensorboard":  # the others are made with them
            _hyperparameters(trackers[-1], settings)
    return trackers


def _hyperparameters(tracker: Any, settings: dict[str, Any]) -> None:
    """Within the run; accelerate's and torch's own ways list them as a second one."""
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(settings, {}):
        tracker.writer.file_writer.add_summary(summary)
    tracker.writer.flush()


def show(tracker: Any, name: str, step: int, rows: list[dict[str, Any]]) -> None:
    """A table of `rows`, which have the same columns, on one tracker."""
    columns: list[Any] = list(rows[0])
    data = [list(row.values()) for row in rows]
    if tracker.name == "tensorboard":
        lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
        lines += [" | ".join(_cell(value) for value in row) for row in data]
        tracker.writer.add_text(name, "\n".join(lines), step)
        tracker.writer.flush()
    elif tracker.name == "wandb":
        tracker.log_table(name, columns, data, step=step)
    else:
        import pandas  # which trackio brings
        import trackio

        table = trackio.Table(dataframe=pandas.DataFrame(data, columns=columns))
        tracker.tracker.log({name: table}, step=step)


def _cell(value: Any) -> str:
    """Of a table in Markdown: as text, whatever it holds."""
    text = html.escape(str(value)).replace("|", "\\|")
    return " ".join(text.splitlines())


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
