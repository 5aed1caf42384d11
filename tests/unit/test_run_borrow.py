"""What one machine has and another reads: two ranks in threads, each with a disk of its own."""

import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _stages import begun, config, state

from cores.errors import UserError
from cores.run import StageRun, borrow
from cores.runtime.launch import Launch
from cores.runtime.machines import MACHINES

ENV = {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


class Meeting:
    """The collectives of two ranks in one process."""

    def __init__(self) -> None:
        self.barrier, self.values = threading.Barrier(2, timeout=20), [None, None]

    def exchange(self, launch: Launch, value: Any) -> list[Any]:
        """Every rank's value, on each."""
        if launch.world == 1:
            return [value]
        self.values[launch.rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Calls an action on two ranks of two machines at once; what each returned or raised."""
    meeting = Meeting()
    monkeypatch.setattr(MACHINES, "env", ENV)
    monkeypatch.setattr(Launch, "is_local_main", True)
    monkeypatch.setattr(Launch, "shared", lambda self, x: meeting.exchange(self, x)[0])
    monkeypatch.setattr(
        Launch, "agree", lambda self, x: [max(int(y) for y in meeting.exchange(self, x))]
    )

    def run(action: Callable[[Launch], Any]) -> list[Any]:
        found: list[Any] = [None, None]

        def one(rank: int) -> None:
            try:
                found[rank] = action(Launch(rank, 2, torch.device("cpu"), "fp32"))
            except UserError as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return found

    return run


def tree(folder: Path) -> dict[str, bytes]:
    """Every file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stage(folder: Path, mark: str = "x") -> Path:
    """Something like a finished stage."""
    (folder / "critic").mkdir(parents=True)
    (folder / "weights" / "step-1").mkdir(parents=True)
    (folder / "weights" / "step-1" / "model.safetensors").write_bytes(b"unneeded")
    (folder / "stage.json").write_text(json.dumps({"mark": mark}))
    (folder / "critic" / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    (folder / "empty.json").touch()
    return folder


@pytest.mark.parametrize("there", [None, "x", "other"])
def test_a_machine_reads_what_the_first_has(
    there: str | None, both: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a copy where it has none, or another; where it is the same, from its own."""
    monkeypatch.setattr(borrow, "CHUNK", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    disks = [stage(tmp_path / "0" / "sft"), tmp_path / "1" / "sft"]
    if there is not None:
        stage(disks[1], there)
    found = both(lambda here: borrow.borrowed(here, disks[here.rank], "stage.json"))
    assert found[0] == disks[0]
    assert (found[1] == disks[1]) == (there == "x")
    whole = {name: facts for name, facts in tree(disks[0]).items() if "weights" not in name}
    assert there == "x" or tree(found[1]) == whole


def test_what_nobody_has_is_not_sent(both: Any, tmp_path: Path) -> None:
    """Whoever reads it says that it is missing."""
    assert (
        both(lambda here: borrow.borrowed(here, tmp_path / "sft", "stage.json"))
        == [tmp_path / "sft"] * 2
    )


def test_no_room_for_a_copy(both: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both end, by one sentence with the folder; nothing stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    disks = [stage(tmp_path / "0" / "sft"), tmp_path / "1" / "sft"]
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = both(lambda here: borrow.borrowed(here, disks[here.rank], "stage.json"))
    assert str(found[1]).startswith(f"{borrow.socket.gethostname()}: does not see {disks[1]}, and ")
    assert str(found[0]) == "rank 1 failed."
    assert not list((tmp_path / "tmp").glob("*/*"))


def test_a_checkpoint_on_the_wrong_machine(both: Any, tmp_path: Path) -> None:
    """Machines that have changed places: refused by folder and step; not where all is begun
    anew, and not the other way round."""
    disks = [tmp_path / str(rank) for rank in (0, 1)]
    with begun(config(disks[1])) as run:
        run.save(4, state(4))
        run.written()

    def claim(here: Launch, disk: Path, **options: Any) -> Any:
        run = StageRun(replace(config(disk), **options), "sft", here, 0.0)
        run.claim()
        run.folder.lock.release()
        return run.resumed

    found = both(lambda here: claim(here, disks[here.rank]))
    assert f"{disks[1] / 'sft.unfinished'} has a checkpoint of step 4" in str(found[1])
    assert str(found[0]) == "rank 1 failed."
    assert both(lambda here: claim(here, disks[here.rank], resume="never")) == [None, None]
    first, second = both(lambda here: claim(here, disks[1 - here.rank]))
    assert first.step == second.step == 4
