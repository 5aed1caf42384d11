"""Processes that user code forks: what they inherit, how they end. All in a process apart."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGE = """\
import multiprocessing, os, signal, subprocess, sys, threading, time
import psutil
sys.path.insert(0, {root!r})
from cores.runtime.children import end_children, free_children
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
for number in (signal.SIGTERM, signal.SIGINT):  # as in a rank
    signal.signal(number, lambda *_: print("handled", flush=True))
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.set_blocking(reader, False)
free_children() if {free} else None
def idle(*_): time.sleep(60)
"""


def ran(text: str, free: bool = True) -> str:
    """What the text prints, behind STAGE."""
    script = STAGE.format(root=str(ROOT), free=free) + textwrap.dedent(text)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return ended.stdout + ended.stderr


def runs(pid: int) -> bool:
    """Whether it is there, and no zombie that nobody asks for."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


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


@pytest.mark.parametrize("how", ["terminate()", "_popen._send_signal(signal.SIGINT)"])
def test_a_child_ends_at_a_signal_and_alone(how: str) -> None:
    code = -15 if "terminate" in how else -2
    assert ran(TERMINATED.format(how=how, wait=5)) == f"{code}\nnot told\n"
    planted = ran(TERMINATED.format(how=how, wait=0.2), free=False)  # what it is there for
    assert planted == f"handled\nNone\ntold {bytes([-code])!r}\n"


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
    assert not runs(int(own))
    psutil.Process(int(other)).kill()


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
        left = [child for child in found if child.is_running() and child.status() != "zombie"]
        print(len(found), [name for child in left for name in child.cmdline()[-1:]])
        print(time.monotonic() - start < 1, flush=True)
        os._exit(0)
    """
    found, cleaner, quick = re.fullmatch(r"(\d) \['(.*)\(\d+\)'\]\n(\w+)\n", ran(text)).groups()
    assert (found, quick) == ("7", "True")
    assert cleaner == "from multiprocessing.resource_tracker import main;main"


def test_nothing_to_end_takes_no_time() -> None:
    assert ran("start = time.monotonic(); end_children(); print(time.monotonic() - start < 1)") == (
        "True\n"
    )
