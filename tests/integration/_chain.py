"""A run of all three scripts, for the tests that look at what it left."""

import io
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from _helpers import SCRIPTS, in_process, run


@dataclass
class Chain:
    """One finished run."""

    out: Path
    base: Path
    arguments: list[str]
    runs: dict[str, subprocess.CompletedProcess[str]]


def run_chain(out: Path, base: Path, words: list[str], launcher: list[str] | None = None) -> Chain:
    """All three stages from the model in `base` into `out`: each a process of its own under
    `launcher`, or all in this one."""
    words = [*words, "--model.path", str(base), "--output_dir", str(out)]
    runs = {}
    for stage in SCRIPTS:
        runs[stage] = here(stage, words) if launcher is None else run(stage, words, launcher)
        assert runs[stage].returncode == 0, runs[stage].stderr
    return Chain(out, base, words, runs)


def here(stage: str, words: list[str]) -> "subprocess.CompletedProcess[str]":
    """A stage in this process, which spares it the imports, and what it wrote."""
    with (
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        patch("sys.argv", [SCRIPTS[stage], *words]),
    ):
        in_process(stage, words)
    return subprocess.CompletedProcess(words, 0, out.getvalue(), err.getvalue())
