"""Which rank speaks, and which was killed."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cores.runtime import cli
from cores.runtime.ranks import Board


def board(folder: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> Board:
    (folder / str(rank)).mkdir(exist_ok=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / str(rank) / "error.json"))
    monkeypatch.setenv("RANK", str(rank))
    return Board()


def test_one_speaks(tmp_path: Path, monkeypatch) -> None:
    """The first that asks; one with patience as soon as it knows."""
    zero, one = (board(tmp_path, rank, monkeypatch) for rank in (0, 1))
    assert zero.may_speak()
    began = time.monotonic()
    assert not one.may_speak(30.0)
    assert not zero.may_speak()
    assert time.monotonic() - began < 5


def test_patience_gives_way_to_rank_0(tmp_path: Path, monkeypatch) -> None:
    """Rank 1 asks first, rank 0 speaks; and if rank 0 has nothing to say, rank 1 does."""
    zero, one = (board(tmp_path, rank, monkeypatch) for rank in (0, 1))
    answers = []
    asking = threading.Thread(target=lambda: answers.append(one.may_speak(5.0)))
    asking.start()
    assert zero.may_speak()
    asking.join()
    assert answers == [False]
    (tmp_path / "spoken").unlink()
    assert one.may_speak(0.2)


def test_killed_or_left(tmp_path: Path, monkeypatch) -> None:
    """Gone without leaving is killed; alive, left, or never arrived is not."""
    boards = [board(tmp_path, rank, monkeypatch) for rank in range(4)]
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    for each in boards[:3]:
        each.arrive()
    (tmp_path / "rank_1").write_text(ended.stdout)
    (tmp_path / "rank_2").write_text(ended.stdout)
    boards[2].leave()
    assert boards[0].killed() == [1]


def test_without_a_board_every_rank_speaks(monkeypatch) -> None:
    """Launchers other than torch's."""
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    lonely = Board()
    lonely.arrive()
    assert lonely.killed() == []
    assert lonely.may_speak()
    assert lonely.may_speak()
    lonely.leave()


def test_message_about_killed_ranks() -> None:
    """Which, and the likeliest reason with its remedy."""
    text = " ".join(cli._killed([1, 3]).split())
    assert text.startswith("error: rank 1 and rank 3 ended without a word")
    assert "microbatch_size" in text
    assert os.linesep not in text
