"""Variables of launchers: numbers that are none, and those of a job that is gone."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from _helpers import ROOT, one_paragraph

from cores.runtime import cli
from cores.runtime.cli import environment_problem, launched
from cores.runtime.ranks import Board


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc', which is no number"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE is '', which is no number"),
        ({"RANK": "1.5"}, "RANK is '1.5'"),
        ({"OMPI_COMM_WORLD_SIZE": "9" * 5000}, "OMPI_COMM_WORLD_SIZE is"),
        ({"ACCELERATE_USE_CPU": "maybe"}, "neither true nor false"),
        ({"RANK": "3", "WORLD_SIZE": "8"}, "`unset WORLD_SIZE RANK`"),
        ({"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "2"}, "`unset GROUP_WORLD_SIZE GROUP_RANK`"),
        ({"LOCAL_RANK": "0"}, "no launcher started"),
        ({"PMI_SIZE": "4"}, "no launcher started"),
        ({"RANK": "auto"}, "RANK is 'auto'"),
        ({"RANK": ""}, "RANK is ''"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "no launcher started"),
    ],
)
def test_refused_by_name(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], said: str) -> None:
    monkeypatch.setattr(cli, "launched", lambda: False)
    problem = environment_problem(env)
    assert problem is not None
    assert said in problem
    assert "unset" in problem


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"LOCAL_RANK": "-1", "WORLD_SIZE": "1", "MASTER_ADDR": "host", "SLURM_NTASKS": "4"},
        {"ACCELERATE_USE_CPU": "True", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"},
    ],
)
def test_harmless(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    monkeypatch.setattr(cli, "launched", lambda: False)
    assert environment_problem(env) is None


def test_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same variables are then its own."""
    monkeypatch.setattr(cli, "launched", lambda: True)
    assert environment_problem({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}) is None


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["/usr/bin/python", "-m", "torch.distributed.run", "x.py"], True),
        (["python", "/env/bin/accelerate", "launch", "x.py"], True),
        (["mpirun", "-np", "2"], True),
        (["python", "-m", "accelerate.commands.launch"], True),
        (["slurmstepd: [12.0]"], True),
        (["bash"], False),
    ],
)
def test_launchers_are_known_by_their_commands(
    monkeypatch: pytest.MonkeyPatch, words: list[str], found: bool
) -> None:
    class Parent:
        def cmdline(self) -> list[str]:
            return words

    monkeypatch.setattr(cli.psutil.Process, "parents", lambda _: [Parent()])
    assert launched() is found


def test_a_lone_stage_does_not_wait_for_others() -> None:
    """In a process of its own: one paragraph, at once, before torch is loaded."""
    done = subprocess.run(
        [sys.executable, "stage1_sft.py"], cwd=ROOT, capture_output=True, text=True, timeout=20,
        env={**os.environ, "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.255.255.1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "WORLD_SIZE and RANK would make this process wait" in one_paragraph(done.stderr)


@pytest.mark.parametrize("left", ["/gone/attempt_0/0/error.json", "x", "/x/y", ""])
def test_a_board_that_is_gone(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    """What an earlier launch left behind is no board, and no number is no rank."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", left)
    monkeypatch.setenv("RANK", "auto")
    board = Board()
    board.arrive()
    assert (board.rank, board.folder, board.killed()) == (0, None, [])
    board.leave()


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed, or made anew under its name, while a shell stood in it."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    problem = cli.environment_problem({})
    monkeypatch.chdir(tmp_path)
    assert str(problem).startswith("the folder that this was started in is gone")
    assert cli.environment_problem({}) is None


def test_python_without_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers cannot be imported then."""
    flags = SimpleNamespace(optimize=2)
    monkeypatch.setattr(cli, "sys", SimpleNamespace(flags=flags))
    assert "python -OO" in str(cli.environment_problem({}))
    flags.optimize = 1
    assert cli.environment_problem({}) is None
