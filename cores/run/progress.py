"""How far a run is: lines now and then, and on a terminal a bar between them."""

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from cores.config import Config
from cores.models.actor import plain_model
from cores.runtime.launch import Launch
from cores.runtime.parents import SCRIPTS
from cores.runtime.screen import draw

ON_TERMINAL, IN_FILE = 10.0, 60.0
"""Seconds between lines."""
DRAWN = 0.2
"""Seconds between two looks of the bar."""
BAR = 24
"""Places of the bar."""
NEXT = {"sft": "stage2_rm.py", "reward": "stage3_ppo.py", "ppo": "scripts/chat.py"}


def described(model: Any, config: Config, launch: Launch) -> str:
    """Model, device and precision, in a line."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    weights, trained = sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
    count = f"{weights / 1e6:.1f} M weights"
    if config.model.quantization in ("8bit", "4bit"):  # several weights are in one number there
        count = config.model.quantization
    share = f", {trained / 1e6:.1f} M trained" if trained < weights else ""
    gpu = launch.device.type == "cuda"
    device = torch.cuda.get_device_name(launch.device) if gpu else launch.device.type.upper()
    several = f"{launch.world} x " if launch.world > 1 else ""
    name = type(plain_model(model)).__name__
    return f"{name}, {count}{share}, {several}{device}, {launch.precision}"


def onward(words: list[str], stage: str, config: Config) -> str | None:
    """The command behind that of `words`, which ran the stage; None where it was run otherwise."""
    script = SCRIPTS[stage]
    at = next((i for i, word in enumerate(words) if Path(word).name == script), None)
    if at is None:
        return None
    follows = NEXT[stage]
    if stage == "sft" and (config.reward.path or "model" not in config.ppo.rewards):
        follows = NEXT["reward"]
    before = words[:at] if stage != "ppo" else ["python"]  # the page takes no launcher
    after, kept = [], True
    for word in words[at + 1 :]:
        if word.startswith("--"):  # what follows is its value
            kept = word.partition("=")[0] not in ("--resume", "--overwrite")
        if kept:
            after.append(word)
    return shlex.join([*before, words[at].removesuffix(script) + follows, *after])


class Progress:
    """Of the steps of one run, on the main process."""

    def __init__(self, stage: str, total: int, done: int, device: torch.device) -> None:
        """`done`: steps before this run went on."""
        self.stage, self.total, self.device = stage, total, device
        self.done, self.began = done, time.monotonic()
        self.terminal = sys.stdout.isatty()
        self.every = ON_TERMINAL if self.terminal else IN_FILE
        self.figures = ""
        """The newest, as the stage tells them."""
        self.said_at: float | None = None
        self.drawn_at = 0.0

    def note(self, step: int, figures: str) -> None:
        """The figures of a step."""
        self.figures = figures
        if self.said_at is None or step == self.total:
            self._say(step)

    def step(self, step: int) -> None:
        """Behind a step: a line if it is time, on a terminal a bar."""
        now = time.monotonic()
        if self.said_at is not None and now - self.said_at >= self.every:
            self._say(step)
        elif self.terminal and now - self.drawn_at >= DRAWN:
            self.drawn_at = now
            full = BAR * step // max(1, self.total)
            bar = "#" * full + "-" * (BAR - full)
            line = f"{self.stage} [{bar}] {step}/{self.total}  {self._left(step)}"
            draw(line[: shutil.get_terminal_size().columns - 1])

    def _say(self, step: int) -> None:
        self.said_at = time.monotonic()
        parts = [f"{self.stage} {step}/{self.total}", self.figures, self._left(step)]
        print("  ".join(part for part in parts if part), flush=True)

    def _left(self, step: int) -> str:
        """Time that is left at the pace so far, and memory."""
        taken, steps = time.monotonic() - self.began, step - self.done
        parts = []
        if steps > 0 and step < self.total:
            parts.append(f"{clock(taken / steps * (self.total - step))} left")
        if self.device.type == "cuda":
            peak, card = torch.cuda.max_memory_allocated(self.device), torch.cuda.mem_get_info()[1]
            parts.append(f"peak {peak / 2**30:.1f} of {card / 2**30:.0f} GiB")
        else:
            parts.append(f"{psutil.Process().memory_info().rss / 2**30:.1f} GiB")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
