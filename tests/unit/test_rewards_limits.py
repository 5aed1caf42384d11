"""Reward functions that do not end in time, start processes, or are interrupted."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from _rewards import asked

from cores.errors import UserError
from cores.rewards import guard

SLOW = [
    "time.sleep(60)",
    "while True: pass",
    "re.match('(a+)+b', 'a' * 60)",
    "while True:\n        try: time.sleep(60)\n        except Exception: pass",
    "try: time.sleep(60)\n    except BaseException: return [1, 2]",
    "threading.Event().wait()",
    "os.read(os.pipe()[0], 1)",
    "subprocess.run(['sleep', '60'])",
    "while True: yield from ()",
    "return asyncio.sleep(60)",
    "signal.setitimer(signal.ITIMER_REAL, 60); time.sleep(60)",
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); time.sleep(60)",
]


@pytest.mark.parametrize("line", SLOW)
def test_functions_that_do_not_end(tmp_path: Path, line: str) -> None:
    modules = "import asyncio, os, re, signal, subprocess, sys, threading, time\n"
    start, threads = time.monotonic(), threading.active_count()
    with pytest.raises(UserError, match=r"reward_timeout, 0\.1 seconds; make it") as info:
        asked(tmp_path, f"{modules}def f(prompts, responses, rows):\n    {line}\n", limit=0.1)
    assert time.monotonic() - start < 2
    where = "in" if "asyncio" in line else "at"
    assert f"failed {where} {tmp_path}/rule.py" in str(info.value)
    assert threading.active_count() == threads or "run" in line


def test_an_alarm_of_its_own(tmp_path: Path) -> None:
    text = """\
import signal, time
def f(responses):
    def ring(*_): raise TimeoutError
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try: time.sleep(5)
    except TimeoutError: return [1, 2]
"""
    assert asked(tmp_path, text).tolist() == [[1.0], [2.0]]
    assert asked(tmp_path, text, limit=None).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("after", ["pass", "return [1, 2]", "raise ValueError"])
def test_ctrl_c_gets_through(tmp_path: Path, after: str) -> None:
    """Even where the function catches all there is."""
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored behind `nohup ... &`
    text = f"""\
import os, signal, time
def f(responses):
    try:
        os.kill(os.getpid(), signal.SIGINT); time.sleep(5)
    except BaseException:
        {after}
"""
    try:
        with pytest.raises(KeyboardInterrupt):
            asked(tmp_path, text)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("signal.pthread_sigmask(0, [signal.SIGVTALRM]); time.sleep(60)", "error: ppo.rewards: "),
        ("sum(range(10**14))", "Timeout (0:00:01"),  # not even another thread can run
    ],
)
def test_code_that_never_comes_back_from_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    """The process is ended: here a copy of this one."""
    monkeypatch.setattr(guard, "TRIES", 0)
    child = os.fork()
    if not child:
        with (tmp_path / "err").open("w") as sys.stderr:
            os.dup2(sys.stderr.fileno(), 2)
            asked(tmp_path, f"import signal, time\ndef f(responses):\n    {line}\n", limit=0.2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    told = (tmp_path / "err").read_text()
    assert told.startswith(said)
    where = f"rule.py{':3: it takes longer' if 'error' in said else chr(34) + ', line 3 in f'}"
    assert where in told


def test_a_forked_child_that_comes_back_ends(tmp_path: Path) -> None:
    """Two processes would go on as one run."""
    text = "import os\ndef f(responses):\n    pid = os.fork()\n    pid and os.waitpid(pid, 0)\n"
    own = os.getpid()
    assert asked(tmp_path, f"{text}    return [pid > 0, 2]\n").tolist() == [[1.0], [2.0]]
    assert os.getpid() == own  # a copy of pytest that went on would pass and fail all the rest


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools(tmp_path: Path, method: str) -> None:
    """The module is found by its name in workers however they start."""
    text = f"""\
import multiprocessing
def size(x): return float(len(x))
def f(responses):
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        return pool.map(size, responses)
"""
    assert asked(tmp_path, text).tolist() == [[5.0], [2.0]]
