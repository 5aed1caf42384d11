"""A run of all three scripts, for the tests that look at what it left."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from _helpers import PYTHON, SCRIPTS, run


@dataclass
class Chain:
    """One finished run."""

    out: Path
    base: Path
    arguments: list[str]
    runs: dict[str, subprocess.CompletedProcess[str]]


def run_chain(out: Path, base: Path, words: list[str], launcher: list[str] = PYTHON) -> Chain:
    """All three stages from the model in `base` into `out`, each a process of its own."""
    words = [*words, "--model.path", str(base), "--output_dir", str(out)]
    runs = {}
    for stage in SCRIPTS:
        runs[stage] = run(stage, words, launcher)
        assert runs[stage].returncode == 0, runs[stage].stderr
    return Chain(out, base, words, runs)
