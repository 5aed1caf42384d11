"""Processes that user code forks: what they inherit, how they end. All in a process apart."""

import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGE = """\
import multiprocessing, os, signal, subprocess, sys, threading, time
import psutil
sys.path.insert(0, {root!r})
from cores.runtime.stop import end_children, free_children
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
for number in (signal.SIGTERM, signal.SIGINT):  # as in a rank
    signal.signal(number, lambda *_: print("handled", flush=True))
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.set_blocking(reader, False)
os.register_at_fork(after_in_child=lambda: time.sleep({slow}))  # runs before what comes now
free_children() if {free} else None
def idle(*_): time.sleep(60)
"""


def ran(text: str, free: bool = True, slow: float = 0.0) -> str:
    """What the text prints, behind STAGE."""
    script = STAGE.format(root=str(ROOT), free=free, slow=slow) + textwrap.dedent(text)
    with tempfile.TemporaryFile("w+") as file:  # a pipe would be read until its last writer ends
        subprocess.run([sys.executable, "-c", script], stdout=file, stderr=file, timeout=60)
        file.seek(0)
        return file.read()


TERMINATED = """
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=idle)
    child.start()
    time.sleep(0.1)
    child.{how}
    child.join({wait})
    print(child.exitcode)
    child.kill()
    try:
        print("told", os.read(reader, 9))
    except BlockingIOError:
        print("not told")
"""


def test_a_child_ends_at_a_signal_and_alone() -> None:
    """SIGTERM, which is meant for it: the parent is not told."""
    assert ran(TERMINATED.format(how="terminate()", wait=5)) == "-15\nnot told\n"
    planted = ran(TERMINATED.format(how="terminate()", wait=0.2), free=False)  # why it is there
    assert planted == "handled\nNone\ntold b'\\x0f'\n"


def test_a_child_that_is_ended_at_once() -> None:
    """Before it has let go of what it inherited: the parent is not told."""
    text = """
        ended = set()
        for _ in range(5):
            child = os.fork()
            if not child:
                idle()
            os.kill(child, signal.SIGTERM)
            ended.add(os.waitpid(child, 0)[1])
        print(ended, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        try:
            print("told", os.read(reader, 9))
        except BlockingIOError:
            print("not told")
    """
    assert ran(text, slow=0.1) == "{15} set()\nnot told\n"


def test_a_terminal_s_signal_ends_no_child() -> None:
    """Ctrl-C reaches the parent too, which finishes its step with them."""
    how = "_popen._send_signal(signal.SIGINT)"
    assert ran(TERMINATED.format(how=how, wait=0.2)) == "None\nnot told\n"


def test_what_is_ignored_stays_ignored() -> None:
    """nohup's SIGHUP; the parent's own handlers are left alone."""
    text = """
        if not os.fork():
            os.kill(os.getpid(), signal.SIGHUP)
            os._exit(0)
        print(os.wait()[1], callable(signal.getsignal(signal.SIGTERM)))
        print(signal.set_wakeup_fd(-1) == writer)
    """
    assert ran(text) == "0 True\nTrue\n"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_children_die_with_a_killed_parent() -> None:
    """Those of the main thread: another thread may end, and its children go on."""
    text = """
        if not os.fork():
            by_main = multiprocessing.get_context("fork").Process(target=idle)
            by_main.start()
            started = []
            def fork():
                started.append(os.fork())
                if not started[0]:
                    os.closerange(1, 3)
                    idle()
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
            time.sleep(0.1)
            print(by_main.pid, started[0], psutil.pid_exists(started[0]), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        os.wait()
        time.sleep(0.2)
    """
    own, other, lived = ran(text).split()
    assert lived == "True"
    deadline = time.monotonic() + 5
    while alive(int(own)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(own))
    assert alive(int(other))
    psutil.Process(int(other)).kill()


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which nobody has asked for, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_no_descendant_is_left() -> None:
    """Deaf ones, those of a pool that replaces its workers, and children of children."""
    text = """
        def deaf(*_):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            subprocess.Popen(["sleep", "61"])
            idle()
        fork = multiprocessing.get_context("fork")
        pool = fork.Pool(2)
        multiprocessing.get_context("spawn").Semaphore()  # starts Python's own cleaner
        fork.Process(target=deaf).start()
        subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 62 & wait"])
        time.sleep(0.3)
        found = psutil.Process().children(recursive=True)
        start = time.monotonic()
        end_children(grace=0.3)
        took = time.monotonic() - start
        time.sleep(0.3)  # until what was killed has ended
        left = [child for child in found if child.is_running() and child.status() != "zombie"]
        print(len(found), [name for child in left for name in child.cmdline()[-1:]])
        print(took < 1, flush=True)
        os._exit(0)
    """
    cleaner = r"from multiprocessing\.resource_tracker import main;main\(\d+\)"
    assert re.fullmatch(rf"7 \['{cleaner}'\]\nTrue\n", ran(text))


def test_nothing_to_end_takes_no_time() -> None:
    assert ran("start = time.monotonic(); end_children(); print(time.monotonic() - start < 1)") == (
        "True\n"
    )
