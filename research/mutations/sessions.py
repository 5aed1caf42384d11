"""Test sessions in copies of the code, each in a process forked from one that has the libraries.

Importing torch, transformers, peft, trl and datasets takes longer than most tests that catch a bug;
a forked child has them already, and imports only the copy's own code.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("cores", "tests", "scripts", "configs", "docs")
OURS = {*PARTS, "stage1_sft", "stage2_rm", "stage3_ppo"}
"""First parts of the names of modules that a child takes from its copy."""
OWN_TEST = "tests/unit/test_mutations.py"
"""It finds that a planted bug's old text is gone, whatever the bug: it would catch every one."""
STATUS = "status.json"


@dataclass(frozen=True)
class Outcome:
    """What a session came to."""

    failed: str | None
    """The first test that failed, or why the session ended early; None: all passed."""
    seconds: float


def save(outcomes: dict[str, Outcome], file: Path) -> None:
    """Outcomes by the name of their bug, as JSON."""
    file.write_text(json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}))


def saved(files: list[Path]) -> dict[str, Outcome]:
    """What `save` wrote; of a bug in several files, the last."""
    read = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {name: Outcome(**told) for found in read for name, told in found.items()}


def preload() -> None:
    """Import what the children share. `cores` is not among it: each has its own."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers
    from trl import RewardTrainer  # noqa: F401

    _ = transformers.Trainer  # loaded when it is asked for, and not before
    torch.set_num_threads(1)  # a thread pool does not survive a fork


def copy_code(source: Path, place: Path) -> None:
    """Package, tests, scripts and their compiled files (by the sources' times) from `source`."""
    place.mkdir()
    for part in PARTS:
        shutil.copytree(source / part, place / part)
    for file in [*source.glob("*.py"), *source.glob("*.toml"), *source.glob("*.md")]:
        shutil.copy2(file, place)


def remove(place: Path) -> None:
    """A copy that is not needed any more."""
    shutil.rmtree(place)


class Session:
    """pytest in a child process, over the code in `place`."""

    def __init__(self, place: Path, arguments: list[str], first_failure: bool = True) -> None:
        self.status = place / STATUS
        self.status.write_text(json.dumps({"test": "collection"}), encoding="utf-8")
        self.started = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_child(place, arguments, first_failure))

    def stop(self) -> None:
        """Kill the child and whatever it started."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended already
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def poll(self, limit: float) -> Outcome | None:
        """The outcome, once there is one. A test that runs for `limit` seconds is killed.

        RuntimeError if pytest could not run the tests, or the planted text names what is not there.
        """
        seconds = time.monotonic() - self.started
        ended, wait_status = os.waitpid(self.pid, os.WNOHANG)
        status = json.loads(self.status.read_text(encoding="utf-8"))
        if not ended:
            if time.time() - self.status.stat().st_mtime < limit:
                return None
            self.stop()
            return Outcome(f"{status['test']} (did not end in {limit:.0f} s)", seconds)
        code = os.waitstatus_to_exitcode(wait_status)
        if code == 0:
            return Outcome(None, seconds)
        if status.get("error", "").startswith(("NameError", "UnboundLocalError")):
            raise RuntimeError(f"{status['failed']}: {status['error']}: no bug, but a misspelling")
        if "failed" in status:
            return Outcome(status["failed"], seconds)
        if code < 0:
            return Outcome(f"{status['test']} (process killed by signal {-code})", seconds)
        log = (self.status.parent / "log.txt").read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"pytest ended with {code} without a failing test:\n{log}")


class _Reporter:
    """A pytest plugin: the running test and the first failing one, in the status file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.status: dict[str, str] = {"test": "collection"}

    def _write(self, **news: str) -> None:
        self.status |= news
        partial = self.file.with_suffix(".new")
        partial.write_text(json.dumps(self.status), encoding="utf-8")
        partial.rename(self.file)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and "failed" not in self.status:
            crash = getattr(report.longrepr, "reprcrash", None)
            self._write(failed=report.nodeid, error=crash.message if crash else "")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and "failed" not in self.status:
            self._write(failed=f"{report.nodeid} (collection)")


def _child(place: Path, arguments: list[str], first_failure: bool) -> int:
    """What the child does: the exit status of pytest."""
    os.setsid()  # its own children end with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(place)
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[:] = [str(place), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    sys.argv = ["pytest"]
    import pytest

    options = [f"--rootdir={place}", "-p", "no:cacheprovider", *(["-x"] if first_failure else [])]
    code = int(pytest.main([*options, *arguments], plugins=[_Reporter(place / STATUS)]))
    if "cores" in sys.modules:
        found = Path(str(sys.modules["cores"].__file__)).resolve()
        assert found.is_relative_to(place.resolve()), f"tested {found}, not the copy in {place}"
    sys.stdout.flush()
    return code
