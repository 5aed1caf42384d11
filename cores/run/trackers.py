"""TensorBoard, W&B and trackio, through accelerate's classes for them."""

import contextlib
import io
import os
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from cores.config import Config, plain
from cores.run.keys import flat


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


def start_trackers(config: Config, stage: str, folder: Path) -> list[GeneralTracker]:
    """The trackers of `logging.trackers`, begun, with the configuration as their hyperparameters.

    The run is named `<output_dir's name>/<stage>`. TensorBoard writes to `folder`/tensorboard, W&B
    to <output_dir>/wandb, trackio to its own place (TRACKIO_DIR). On the main process only.
    """
    return [_start(name, config, stage, folder) for name in dict.fromkeys(config.logging.trackers)]


def _start(name: str, config: Config, stage: str, folder: Path) -> GeneralTracker:
    root = Path(config.output_dir).expanduser()
    project, run, settings = config.logging.project, f"{root.name}/{stage}", flat(plain(config))
    tracker: GeneralTracker
    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", logging_dir=folder)
        tracker.start()
        tracker.store_init_configuration(settings)
        return tracker
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE", "offline")  # a run must not wait for a login
        quiet = {"silent": mode == "offline"}
        tracker = WandBTracker(
            project, name=run, dir=str(root), mode=mode, config=settings, settings=quiet
        )
    else:
        tracker = _QuietTrackio(project, name=run, config=settings)
    tracker.start()
    return tracker


def finish_trackers(trackers: list[GeneralTracker]) -> list[str]:
    """Close them; returns what the user should know."""
    lines = []
    for tracker in trackers:
        if tracker.name == "wandb" and tracker.tracker.settings.mode == "offline":
            place = tracker.tracker.settings.sync_dir
            lines.append(f"wandb is offline; `wandb sync {place}` sends this run")
        tracker.finish()
    return lines
