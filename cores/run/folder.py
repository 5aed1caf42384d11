"""The folder of a run: who may write, what goes on there, and how it becomes the finished stage.

`<output_dir>/<stage>.unfinished` holds everything until the stage is whole and takes the place of
`<output_dir>/<stage>`: metrics, samples, what the screen said, and checkpoints to go on from.
"""

import contextlib
import json
import os
import secrets
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil

from cores.config import Config, plain
from cores.config.parse import renamed
from cores.errors import UserError
from cores.files import aside, changes, exchange, read_json, remove, settle, sync_tree, write_json
from cores.run import checkpoint
from cores.run.checkpoint import Checkpoint
from cores.run.lock import Lock
from cores.runtime.launch import Launch
from cores.runtime.parents import VERSION, check_version
from cores.runtime.screen import LOG
from cores.runtime.stop import Stopped

STATE, RECORD, CHECKPOINTS = "state.json", "stage.json", "checkpoints"
ROWS = {"metrics.jsonl": "step", "samples.jsonl": "update", "evaluations.jsonl": "update"}
"""Files that grow with the steps, and the key that says at which."""
LENGTHS = {
    "ppo.updates": " (warm-up and schedule are shares of it; it may grow in a run that began with "
    "ppo.lr_schedule constant and ppo.warmup 0 or a number of steps)",
    **dict.fromkeys(
        ("sft.epochs", "sft.max_steps", "reward.epochs", "reward.max_steps"),
        " (warm-up and schedule are shares of it)",
    ),
}
"""Keys of how long a stage trains, and why a run does not go on with another value."""
UNSAID = "what it says may quote a reply, and logging.samples is false; see the screen"
SHOWN = 4
"""Changes that an error names before it counts."""
FREE = (
    "output_dir", "logging", "checkpoint", "overwrite", "resume", "data.inspect",
    "data.inspect_json", "faults", "ppo.reward_timeout", "ppo.sample_every",
)  # fmt: skip
"""Keys and sections that change nothing that is trained; of `faults` but whether it goes on."""


class Folder:
    """On the main process; the others know the paths alone."""

    def __init__(self, config: Config, stage: str, launch: Launch) -> None:
        self.config, self.stage, self.launch = config, stage, launch
        self.final = Path(config.output_dir).expanduser().absolute() / stage
        self.path = self.final.with_name(f"{stage}.unfinished")
        self.gone = self.final.with_name(f".{stage}.removed")
        self.lock = Lock(self.final.with_name(f".{stage}.lock"))
        self.found: dict[str, Any] = {}
        """state.json of the unfinished run that goes on."""
        self.state: dict[str, Any] = {}
        """That of this run, from `begin` on."""

    def claim(self) -> Checkpoint | None:
        """Take the stage's place; what to go on from. UserError: see `StageRun.claim`."""
        if LOG.path is not None:  # a run before this one in the same process has failed
            LOG.attach(None)
        if (note := self.lock.take()) is not None:
            self.launch.say(note)
        for place in (self.final, self.path, aside(self.final)):
            _check_ours(place)
        settle(self.final)
        remove(self.gone)
        if (self.final / STATE).exists():  # killed when all but this was done
            _clean(self.final)
        if self.path.exists() and not (self.path / STATE).exists():
            self._discard()  # the older stage, replaced by a run that was killed then
        resumed, stands = None, self.path.exists()
        unwanted = stands and self.config.resume == "never"
        if stands and not unwanted:
            self.found = read_state(self.path / STATE)
            resumed, notes = checkpoint.newest(self.path / CHECKPOINTS)
            for note in notes:
                self.launch.say(note)
        if self.final.exists() and not (self.config.overwrite or self.found.get("overwrite")):
            raise UserError(
                f"{self.final}: exists already. Give --overwrite to replace it, or another "
                "--output_dir."
            )
        if resumed is not None and (keys := differing(self.found["config"], self.config)):
            raise UserError(
                f"{self.path}: an unfinished run with other options stands there, at step "
                f"{resumed.step}: {'; '.join(keys)}. Give the same options to go on, --resume "
                "never to remove it and begin anew, or another --output_dir."
            )
        if unwanted:
            steps = checkpoint.steps(self.path / CHECKPOINTS)
            newest = f"the newest at step {steps[0]}" if steps else "nothing to go on from"
            count = f"{len(steps)} checkpoint{'s' * (len(steps) != 1)}"
            self.launch.say(
                f"--resume never: {self.path} ({count}, {newest}) is removed when training begins"
            )
        return resumed

    def begin(self, facts: dict[str, Any], resumed: Checkpoint | None) -> None:
        """Make the folder, or cut its rows to the checkpoint `resumed`: see `StageRun.begin`."""
        if resumed is not None:
            self._check_facts(facts)
        elif self.config.resume == "never" and self.path.exists():
            _check_ours(self.path)
            self._discard()
        else:
            remove(self.path / "weights")  # those of a try that left no checkpoint
        self.path.mkdir(exist_ok=True)
        for name, key in ROWS.items():
            if (place := self.path / name).exists() and not place.is_file():
                raise UserError(f"{place} is no ordinary file, and takes no rows; move it away.")
            cut(self.path / name, key, resumed.step if resumed else 0)
        self.state = {
            "version": VERSION,
            "stage": self.stage,
            "stopped": None,
            "resume": command(self.config),
            "directory": os.getcwd(),
            "run": self.found.get("run") if resumed is not None else secrets.token_hex(8),
            "overwrite": self.config.overwrite or self.found.get("overwrite", False),
            "facts": facts,
            "config": plain(self.config),
        }
        write_json(self.path / STATE, self.state)
        LOG.attach(self.path / "log.txt")
        LOG.quotes = self.config.logging.samples

    def _check_facts(self, facts: dict[str, Any]) -> None:
        before = self.found["facts"]
        changed = {name: list(changes(before.get(name), facts[name], name)) for name in facts}
        if changed.pop("reward_files", []):  # a function that failed may be mended
            self.launch.say("note: the files of ppo.rewards are not those that the run began with")
        if lines := [line for found in changed.values() for line in found]:
            names = " and ".join(name for name, found in changed.items() if found)
            more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
            raise UserError(
                f"{self.path}: {names} are not what the unfinished run began with "
                f"({'; '.join(lines[:SHOWN])}{more}). Put them back to go on, or give --resume "
                "never to begin anew."
            )

    def publish(self) -> None:
        """Put the folder in the stage's place. The older stage is there until it is."""
        sync_tree(self.path)
        _check_ours(self.final)
        if self.final.exists() and not self.state["overwrite"]:
            raise UserError(
                f"{self.final}: has come to stand there since this run began. Move it away, and "
                "give the same command to finish, or give --overwrite to replace it."
            )
        if self.final.exists():
            exchange(self.path, self.final)
        else:
            self.path.rename(self.final)
        LOG.attach(self.final / "log.txt")
        _clean(self.final)
        if self.path.exists():  # the older stage
            with contextlib.suppress(OSError):  # the next run removes what is left
                self._discard()

    def _discard(self) -> None:
        """Remove the unfinished folder, under a name by which a kill half-way leaves no riddle."""
        self.path.rename(self.gone)
        remove(self.gone)

    def leave(self, error: BaseException | None) -> None:
        """Let go. Of a run that began and is not finished, state.json says why."""
        quotes = self.config.logging.samples or isinstance(error, Stopped)
        if error is not None and not quotes:
            LOG.add(f"{type(error).__name__}: {UNSAID}\n")
        if error is None or LOG.path is None or not quotes:
            LOG.attach(None)  # else what is said of the error is yet to come
        if error is not None and self.state and (self.path / STATE).exists():
            stopped = f"{type(error).__name__}: {error if quotes else UNSAID}"[:2000]
            with contextlib.suppress(OSError):  # the disk is full: the folder stays as it is
                write_json(self.path / STATE, {**self.state, "stopped": stopped})
        self.lock.release()


def _check_ours(place: Path) -> None:
    """UserError for what stands in a stage's place and was written by no run."""
    if os.path.lexists(place) and not place.is_dir():
        raise UserError(
            f"{place}: is no folder, and a stage's has to stand there. Remove it, or give another "
            "--output_dir."
        )
    found = sorted(p.name for p in place.iterdir()) if place.exists() else []
    # A kill may have left it while the first state.json was written.
    if set(found) - {f".{STATE}.partial"} and not {STATE, RECORD} & set(found):
        raise UserError(
            f"{place}: holds files that no run wrote ({', '.join(found[:3])}). Move it away, or "
            "give another --output_dir."
        )


def read_state(path: Path, remedy: str = "") -> dict[str, Any]:
    """state.json of an unfinished run; UserError if it is damaged, or of a newer program."""
    remedy = remedy or "Give --resume never to begin anew, which removes it."
    state = read_json(path, remedy)
    check_version(path, state)
    for name in ("config", "facts"):
        if not isinstance(state.get(name), dict):
            raise UserError(f"{path}: damaged (unlike {name}). {remedy}")
    return {**state, "config": renamed(state["config"])}


def _clean(folder: Path) -> None:
    """Take out of a finished stage what only an unfinished one needs."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    (folder / STATE).unlink(missing_ok=True)


def cut(path: Path, key: str, last: int) -> None:
    """Take the rows behind `last` out of a file of JSON lines: they are made again. Half a row, of
    a kill, goes as well."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            if json.loads(line)[key] <= last:
                kept.append(f"{line}\n")
        except (ValueError, KeyError, TypeError):
            continue
    path.write_text("".join(kept), encoding="utf-8")


def command(config: Config) -> str:
    """What goes on with this run: what was typed to start it, its launcher included."""
    words = [Path(sys.executable).name, *sys.argv]
    if "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        with contextlib.suppress(psutil.Error):  # it is gone
            words = psutil.Process(os.getppid()).cmdline() or words
    if config.resume == "never":  # it would remove this run; the last word counts
        words = [*words, "--resume", "auto"]
    return shlex.join(words)


def differing(before: dict[str, Any], now: Config) -> list[str]:
    """Keys with another value than the unfinished run began with, each `key: before -> now`."""
    new, old = flat(plain(now)), flat(before)
    known = flat(plain(Config())) | old  # a key that is new since then had its default
    # No rate depends on the number of updates then.
    constant = new["ppo.lr_schedule"] == "constant" and not 0 < new["ppo.warmup"] < 1
    lines = []
    for key, value in new.items():
        was = known.get(key)
        grows = key == "ppo.updates" and constant and isinstance(was, int) and value > was
        if was != value and not grows and not _free(key):
            shown = (json.dumps(x, ensure_ascii=False) for x in (was, value))
            lines.append(f"{key}: {' -> '.join(shown)}{LENGTHS.get(key, '')}")
    return lines + [f"{key}: is gone" for key in old if key not in new and not _free(key)]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted keys, as the command line names them; lists as JSON."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return result


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)
