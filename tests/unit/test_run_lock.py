"""One run at a time on a stage, among real processes (forks of this one)."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cores.errors import UserError
from cores.run.lock import Lock

CROWD = 20


def fork(work: Callable[[], str]) -> tuple[int, int]:
    """Process and pipe of a child that writes what `work` returns, and waits to be killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        os.write(writer, work().encode())
        time.sleep(60)
    finally:
        os._exit(1)


def taken(path: Path) -> str:
    """held, or what the user is told instead."""
    try:
        Lock(path).take()
    except UserError as error:
        return str(error)
    return "held"


def said(reader: int) -> str:
    return os.read(reader, 4096).decode()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_of_two_processes_one_goes_on(tmp_path: Path) -> None:
    """The other is told who: process, host, user and since when. When the first is killed, however
    that happens, its file blocks nobody."""
    path = tmp_path / "run" / ".sft.lock"
    first, reader = fork(lambda: taken(path))
    assert said(reader) == "held"
    holder = json.loads(path.read_text())
    message = taken_elsewhere(path)
    assert message.startswith(f"{tmp_path / 'run' / 'sft'}: process {first} on {holder['host']} ")
    assert f"(user {holder['user']}, since {holder['since']}) is writing this stage now" in message
    kill(first)
    assert path.exists()
    assert taken_elsewhere(path) == "held"


def taken_elsewhere(path: Path) -> str:
    """What a process of its own is told, that ends then."""
    pid, reader = fork(lambda: taken(path))
    text = said(reader)
    kill(pid)
    return text


def test_of_a_crowd_exactly_one_goes_on(tmp_path: Path) -> None:
    """However many begin at once, also on what a killed one left."""
    path = tmp_path / ".sft.lock"
    for _ in range(2):
        gate, opened = os.pipe()

        def wait_and_take(gate: int = gate, opened: int = opened) -> str:
            os.close(opened)
            os.read(gate, 1)  # until all are there
            return taken(path)

        children = [fork(wait_and_take) for _ in range(CROWD)]
        os.close(opened)
        found = [said(reader) for _, reader in children]
        for pid, _ in children:
            kill(pid)
        assert found.count("held") == 1
        told = [text for text in found if text != "held"]
        assert all("is writing this stage now" in text for text in told)
        path.write_text("half a li")


def test_released_when_the_run_ends(tmp_path: Path) -> None:
    """No file stays, and no empty folder that was made for it; others do."""
    path = tmp_path / "a" / "b" / ".sft.lock"
    lock = Lock(path)
    lock.take()
    assert json.loads(path.read_text())["process"] == str(os.getpid())
    lock.release()
    assert list(tmp_path.iterdir()) == []
    lock.release()
    lock = Lock(path)
    lock.take()
    (tmp_path / "a" / "note").touch()
    lock.release()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["note"]


def test_a_worker_that_outlives_the_run_holds_nothing(tmp_path: Path) -> None:
    """A forked child does not inherit it."""
    path = tmp_path / ".sft.lock"

    def with_worker() -> str:
        Lock(path).take()
        pid, _ = fork(lambda: "working")
        return str(pid)

    parent, reader = fork(with_worker)
    worker = int(said(reader))
    assert "is writing this stage now" in taken_elsewhere(path)
    kill(parent)
    assert taken_elsewhere(path) == "held"
    os.kill(worker, signal.SIGKILL)


def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path) -> None:
    path = tmp_path / ".sft.lock"

    def silent() -> str:
        Lock(path).take()
        os.truncate(path, 0)
        return "held"

    pid, reader = fork(silent)
    said(reader)
    assert "another run is writing this stage now" in taken_elsewhere(path)
    kill(pid)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note, and the run goes on."""

    def none(*_: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    note = Lock(tmp_path / ".sft.lock").take()
    assert note is not None
    assert "has no locks (No locks available): a second run on it would not be noticed" in note


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output_dir: .*/file is a file, not a folder"):
        Lock(tmp_path / "file" / "run" / ".sft.lock").take()


@pytest.mark.parametrize("what", ["link", "dangling", "folder", "device"])
def test_a_lock_that_is_no_file(tmp_path: Path, what: str) -> None:
    """What a link leads to is not written; nothing but a regular file is a lock."""
    path, theirs = tmp_path / ".sft.lock", tmp_path / "diary.txt"
    theirs.write_text("mine")
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to(
            {"link": theirs, "dangling": tmp_path / "none", "device": "/dev/null"}[what]
        )
    with pytest.raises(UserError, match=r"\.sft\.lock is no regular file, as a lock has to be"):
        Lock(path).take()
    assert theirs.read_text() == "mine"
    assert not (tmp_path / "none").exists()


def test_other_users_may_see_the_holder(tmp_path: Path) -> None:
    """Those who may write the folder, whatever the umask."""
    lock, before = Lock(tmp_path / ".sft.lock"), os.umask(0o077)
    try:
        lock.take()
    finally:
        os.umask(before)
    assert lock.path.stat().st_mode & 0o666 == 0o666
    lock.release()
