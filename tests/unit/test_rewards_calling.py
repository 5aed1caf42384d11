"""Reward functions as people write them: parameters, results, failures, what they leave behind."""

import math
import os
import random
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from _rewards import asked

from cores.errors import UserError

NAN = math.nan
ANSWERS = """\
import asyncio, functools, collections, decimal, fractions, numpy, torch
class Judge:
    def __call__(self, prompts, responses, rows): return [1.0, 2.0]
    def method(self, responses): return [1.0, 2.0]
    @staticmethod
    def fixed(completions, answer, **kwargs): return [answer[0] - 6, answer[1] - 6]
def decorated(function):
    def wrapper(*args, **kwargs): return function(*args, **kwargs)
    return wrapper
def two(prompts, responses, rows): return [1.0, 2.0]
def answers(answer, **kwargs): return [answer[0] - 6, answer[1] - 6]
"""
FORMS = [
    "def f(prompts, responses, rows): return [1, 2]",
    "def f(p, r, w): return [w[0]['answer'] - 6, w[1]['answer'] - 6]",
    "def f(*args): return [args[2][0]['answer'] - 6, 2]",
    "def f(prompts, replies, rows): return [x['answer'] - 6 for x in rows]",
    "def f(p, r, w, scale=1): return [scale, 2]",
    "def f(rows, prompts, responses): return [len(prompts[1]) - 2, rows[0]['answer'] - 5]",
    "def f(responses): return [len(r) - 4 + i * 4 for i, r in enumerate(responses)]",
    "def f(completions): return [len(r) - 4 + i * 4 for i, r in enumerate(completions)]",
    "def f(rows): return [row['answer'] - 6 for row in rows]",
    "def f(*, rows): return [row['answer'] - 6 for row in rows]",
    "def f(prompts, *, rows=None): return [row['answer'] - 6 for row in rows]",
    "def f(prompts, responses, scale=1.0): return [scale, 2 * scale]",
    "def f(prompts, responses, **kwargs): return [x - 6 for x in kwargs['answer']]",
    "def f(prompts, completions, answer, **kwargs): return [x - 6 for x in answer]",
    "def f(answer=None, **kwargs): return [x - 6 for x in answer]",
    "def f(absent=1, **kwargs): return [absent, 2]",
    "def f(**given): return [1, 2] if 'tags' not in given and given['rows'] else None",
    "def f(prompts, responses, rows, **kwargs): return [x['answer'] - 6 for x in rows]",
    "f = lambda p, r, w: [1, 2]",
    "f = Judge()",
    "f = Judge().method",
    "f = Judge.fixed",
    "f = decorated(two)",
    "f = functools.partial(two, rows=[])",
    "f = functools.wraps(two)(lambda *a, **k: two(*a, **k))",
    "f = functools.wraps(answers)(lambda **k: answers(**k))",
    "f = functools.lru_cache(lambda *a: 0).__wrapped__ and two",
    "class f(list):\n  def __init__(self, prompts, responses, rows): super().__init__([1, 2])",
    "async def f(responses): await asyncio.sleep(0); return [1, 2]",
    "async def one(i): await asyncio.sleep(0); return i\n"
    "async def f(responses): return await asyncio.gather(one(1), one(2))",
    "def f(responses): yield 1; yield 2",
    "def f(responses): return map(float, '12')",
    "def f(responses): return (x for x in (1, 2))",
    "def f(responses): return range(1, 3)",
    "def f(responses): return collections.deque([1, 2])",
    "def f(responses): return torch.tensor([1., 2.], requires_grad=True) * 1",
    "def f(responses): return torch.tensor([1., 2.], dtype=torch.bfloat16)",
    "def f(responses): return [torch.tensor(1., requires_grad=True), numpy.float16(2)]",
    "def f(responses): return numpy.array([1, 2], dtype=object)",
    "def f(responses): import pandas; return pandas.Series([1, 2], index=['b', 'a'])",
    "def f(responses): return [decimal.Decimal(1), fractions.Fraction(4, 2)]",
    "def f(responses): return [True, 10**400 // 10**400 + 1]",
]


@pytest.mark.parametrize("text", FORMS)
def test_functions_that_work(tmp_path: Path, text: str) -> None:
    assert asked(tmp_path, f"{ANSWERS}{text}\n").tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "parameters",
    [
        "",
        "a",
        "promts, responses",
        "responses, scale",
        "a, b, c, d",
        "rows, replies, prompts",
        "responses, /",
        "a, /, **kwargs",
        "*, replies",
        "answer, responses",
    ],
)
def test_parameters_that_nothing_is_known_of(tmp_path: Path, parameters: str) -> None:
    """Refused before any model is loaded."""
    with pytest.raises(UserError, match=r"cannot be called with its parameters \(.*these names"):
        asked(tmp_path, f"def f({parameters}): raise AssertionError\n")


FAILURES = {
    "raise ValueError('the key is wrong')": "failed at RULE:2: ValueError: the key is wrong",
    "raise SystemExit(0)": "failed at RULE:2: SystemExit: 0",
    "raise KeyboardInterrupt": "failed at RULE:2: KeyboardInterrupt",
    "raise GeneratorExit": "failed at RULE:2: GeneratorExit",
    "raise MemoryError": "failed at RULE:2: MemoryError",
    "raise StopIteration": "failed at RULE:2: StopIteration",
    "raise BaseException('any')": "failed at RULE:2: BaseException: any",
    "return f(prompts, responses, rows)": "failed at RULE:2: RecursionError: maximum",
    "raise BaseExceptionGroup('x', [KeyboardInterrupt()])": "BaseExceptionGroup: x (1 sub",
    "raise type('E', (Exception,), {'__str__': None})": "failed at RULE:2: E: (it cannot be shown)",
    "raise OSError('two\\nlines')": "failed at RULE:2: OSError: two lines",
    "raise OSError('a' * 10**6)": "failed at RULE:2: OSError: aaa",
    "import json; json.loads('{')": "failed at RULE:2: JSONDecodeError: Expecting property",
    "exec('x = (')": "<string>:1: SyntaxError: '(' was never closed",
    "yield 1; raise ValueError('late')": "failed at RULE:2: ValueError: late",
    "assert False": "failed at RULE:2: AssertionError",
    "import subprocess; subprocess.run(['false'], check=True)": "CalledProcessError: Command",
    "from multiprocessing.pool import ThreadPool; return ThreadPool(1).imap(int, 'ab')": "ValueErr",
    "import torch; return torch.ones(2, device='meta')": "failed in RULE: NotImplementedError",
    "import asyncio; return asyncio.sleep(0, [1])": "returned 1 values for 2 responses",
    "return None": "returned None; it must return a list",
    "return '12'": "returned '12'; it must return a list",
    "return b'12'": "returned b'12'; it must return a list",
    "return 1.0": "returned 1.0; it must return a list",
    "return {0: 1, 1: 2}": "returned {0: 1, 1: 2}; it must return a list",
    "return {1, 2}": "returned {1, 2}; it must return a list",
    "return f": "returned <function f at 0x",
    "import itertools; return itertools.count()": "returned 3 values for 2 responses",
    "return []": "returned 0 values for 2 responses",
    "return [1.0] * 10**4": "returned 10000 values for 2 responses",
    "return [1, [1.0]]": "returned [1.0] for row 1, the response 'w9' to the prompt 'w20'",
    "return [1, '1.0']": "returned '1.0' for row 1",
    "return [float('inf'), 1]": "returned inf for row 0",
    "return [1, 3e38]": "returned 3e+38 for row 1",
    "return [1, 10**400]": "returned 1000000",
    "return [1, 10**5000]": "returned a value of type int for row 1",
    "import decimal; return [1, decimal.Decimal('sNaN')]": "returned Decimal('sNaN') for row 1",
    "import fractions; return [1, fractions.Fraction(10**400, 3)]": "returned Fraction(1000",
    "return [1, 1j]": "returned 1j for row 1",
    "return [1, {}]": "returned {} for row 1",
    "return [1, type('R', (), {'__repr__': None})()]": "returned <R instance at 0x",
    "return [1, 'a' * 10**6]": "returned 'aaa",
    "import torch; return torch.ones(2, 1)": "returned [1.0] for row 0",
    "return [(1, 'why'), (2, 'why')]": "returned (1, 'why') for row 0",
    "return [None, 1]": "every source says None for row 0, the response 'w7 w8' to the prompt 'w5",
}


@pytest.mark.parametrize("line", FAILURES)
def test_functions_that_fail(tmp_path: Path, line: str) -> None:
    """One short paragraph, whatever it is."""
    with pytest.raises(UserError) as info:
        asked(tmp_path, f"def f(prompts, responses, rows):\n    {line}\n")
    message = str(info.value)
    assert FAILURES[line].replace("RULE", f"{tmp_path}/rule.py") in message
    assert message.startswith("ppo.rewards: ")
    assert "\n" not in message
    assert len(message) < 600


def test_a_column_that_only_some_rows_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'tags' is no column that all rows of "):
        asked(tmp_path, "def f(responses, tags, **kwargs): return [1, 2]\n")


def test_none_is_no_score(tmp_path: Path) -> None:
    """One source may pass over a row as long as another with a weight does not."""
    text = "def f(rows): return [None, 1]\ndef g(rows): return [2, None]\n"
    found = asked(tmp_path, f"{text}def h(rows): return [None, None]\n", f=1, g=-1, h=0.5)
    torch.testing.assert_close(found, torch.tensor([[NAN, 2, NAN], [1, NAN, NAN]]), equal_nan=True)
    with pytest.raises(UserError, match="every source says None for row 1, the response 'w9'"):
        asked(tmp_path, text, f=0, g=1)  # f is logged alone


LEAVES = """\
import asyncio, os, random, signal, sys, threading, numpy, torch
def f(prompts, responses, rows):
    os.chdir("/")
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
    torch.set_grad_enabled(True), torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta"), torch.set_num_threads(torch.get_num_threads() + 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGVTALRM):
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    async def handled():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
        return [1, 2]
    prompts.clear(), rows[0].clear()
    sys.stdout = sys.stderr = None
    return handled()
"""


def state() -> list[object]:
    """What a function could leave changed."""
    generators = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    torch_s = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    alarm, device = signal.getitimer(signal.ITIMER_REAL), torch.empty(0).device
    screens = id(sys.stdout), id(sys.stderr)
    threads = threading.active_count()
    return [os.getcwd(), generators, torch_s, signals, alarm, device, screens, threads]


@pytest.mark.parametrize("ending", ["", "f, g = (lambda p, r, w: g(p, r, w) / 0), f\n"])
def test_nothing_is_left_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    kept = signal.set_wakeup_fd(writer)
    try:
        before = state()
        with torch.no_grad():
            inside = state()
            if ending:
                with pytest.raises(UserError, match="TypeError"):
                    asked(tmp_path, LEAVES + ending)
            else:
                asked(tmp_path, LEAVES)
            assert state() == inside
        assert state() == before
        assert signal.set_wakeup_fd(kept) == writer
    finally:
        signal.set_wakeup_fd(kept)
        os.close(reader)
        os.close(writer)


def test_random_functions_draw_by_the_replies(tmp_path: Path) -> None:
    """Not from the run's own state, and not the same numbers for other replies."""
    text = "import random, numpy, torch\ndef f(responses): return [random.random(), SECOND]\n"
    for second in ("numpy.random.rand()", "torch.rand(())"):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        first = asked(tmp_path, text.replace("SECOND", second))
        random.seed(2), np.random.seed(2), torch.manual_seed(2)
        assert torch.equal(first, asked(tmp_path, text.replace("SECOND", second)))
