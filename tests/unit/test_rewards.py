"""Python functions as rewards: what they are given, what they may return, how mistakes are told."""

import hashlib
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _models import EOS, PPO, toy_tokenizer
from _rewards import ROWS, TWO, rollout
from _tokenizers import chat_like

from cores.errors import UserError
from cores.rewards.call import RewardFunctions, reply_texts
from cores.rewards.load import load_functions
from cores.rollout import Rollout


def scorer(*functions: Callable[..., Any], **ppo: Any) -> RewardFunctions:
    """With the functions as they are."""
    named = {f"f{i}.py:f": function for i, function in enumerate(functions)}
    return RewardFunctions(replace(PPO, **ppo), toy_tokenizer(), named)


def scores(*functions: Callable[..., Any]) -> torch.Tensor:
    return scorer(*functions)(TWO, ROWS)


def texts(made: RewardFunctions, replies: Rollout) -> list[str]:
    return [text for text, _ in reply_texts(replies, made.tokenizer, made.config)]


def refused(returned: Any) -> str:
    with pytest.raises(UserError) as info:
        scores(lambda prompts, responses, rows: returned)
    return str(info.value)


def test_what_a_function_is_given() -> None:
    """Once for a rollout: rendered prompts, replies without padding and stop token, rows as read;
    its column is its place among the functions."""
    calls: list[Any] = []

    def lengths(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[int]:
        calls.append((list(prompts), list(responses), deepcopy(rows)))
        responses.clear()  # nobody else sees what it does to its arguments
        rows[0]["answer"] = "changed"
        rows[1]["tags"].append("changed")
        return [1, 2]

    def answers(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[int]:
        return [row["answer"] + len(row.get("tags", [])) for row in rows][: len(responses)]

    found = scores(lengths, answers)
    expected = (["w5 w9 w13", "w20"], ["w7 w8", "w9"], [row["row"] for row in ROWS])
    assert calls == [expected]
    assert found.dtype == torch.float32
    assert found.tolist() == [[1.0, 7.0], [2.0, 9.0]]
    assert scores(answers, lengths).tolist() == [[7.0, 1.0], [9.0, 2.0]]
    assert scores().shape == (2, 0)


def test_the_stop_token_is_no_part_of_the_reply() -> None:
    """Invariant 16: whichever id stopped it, once, and only where it did."""
    make = scorer(stop_token_ids=[33])
    assert texts(make, rollout([[7, 33, 33], [9, EOS]], [True, True])) == ["w7 w33", "w9"]
    assert texts(make, rollout([[7, 33], [33]], [True, False])) == ["w7", "w33"]
    assert texts(scorer(), rollout([[7, 33], [9]], [True, False])) == [
        "w7 w33",
        "w9",
    ]  # stop string
    assert texts(make, rollout([[EOS], [33]], [True, True])) == ["", ""]


def test_special_tokens_and_cut_characters() -> None:
    """A reply cut between the bytes of a character ends with the last whole one."""
    tokenizer = chat_like()
    special = tokenizer.convert_tokens_to_ids("<|im_start|>")
    cut = tokenizer("天气 ok 🦜")["input_ids"][:-1]
    made = RewardFunctions(PPO, tokenizer, {})
    plain = tokenizer("fine")["input_ids"]
    replies = rollout([cut, [special, *plain, tokenizer.eos_token_id]], [False, True])
    assert texts(made, replies) == ["天气 ok ", "fine"]


@pytest.mark.parametrize(
    "returned",
    [
        [True, 0.5],
        (1, 0.5),
        [np.float32(1), np.float64(0.5)],
        [np.bool_(True), np.array(0.5)],
        [torch.tensor(1), torch.tensor(0.5)],
        np.array([1, 0.5]),
        torch.tensor([1, 0.5]),
    ],
)
def test_numbers_of_every_kind(returned: Any) -> None:
    assert scores(lambda prompts, responses, rows: returned).tolist() == [[1.0], [0.5]]


@pytest.mark.parametrize(
    "bad",
    ["1.0", float("nan"), -float("inf"), 1e39, 10**400, [1.0], torch.ones(1), 1j],
)
def test_values_that_are_no_finite_number(bad: Any) -> None:
    message = refused([0.5, bad])
    assert message.startswith("ppo.rewards: f0.py:f returned ")
    assert "for row 1, the response 'w9' to the prompt 'w20'" in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([1.0], "returned 1 values for 2 responses"),
        ([1.0] * 3, "returned 3 values for 2 responses"),
        (None, "returned None; it must return a list"),
        (0.5, "returned 0.5; it must return a list"),
        (torch.tensor(0.5), "it must return a list"),
        ({"a": 1.0, "b": 2.0}, "it must return a list"),
        (torch.ones(2, 1), "returned [1.0] for row 0"),
    ],
)
def test_results_that_are_no_list_of_one_each(bad: Any, said: str) -> None:
    assert said in refused(bad)


def test_rows_that_are_not_the_replies() -> None:
    with pytest.raises(ValueError, match="1 rows for 2 replies"):
        scorer()(TWO, ROWS[:1])


GOOD = """\
from __future__ import annotations
from dataclasses import dataclass
import neighbour

@dataclass
class Settings:
    scale: float = 2.0

def scaled(prompts, responses, rows):
    return [Settings().scale * row["answer"] for row in rows]

def nested(prompts, responses, rows):
    return inner(rows)

def inner(rows):
    return neighbour.first(rows)

def leaves(prompts, responses, rows):
    raise SystemExit(0)

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with sub/good.py and a module beside it."""
    monkeypatch.chdir(tmp_path)
    load_functions({}, 1.0)  # takes the folders of earlier tests off the path, which is put back
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "sub" / "neighbour.py").write_text(
        "def first(rows):\n    return rows[0]['missing']\n", encoding="utf-8"
    )
    return tmp_path


def test_functions_by_name(folder: Path) -> None:
    """In the order of the configuration, `model` left out, each file run once."""
    named = ["sub/good.py:nested", "model", "sub/good.py:scaled", f"{folder}/sub/good.py:scaled"]
    functions, files = load_functions(dict.fromkeys(named, 1.0))
    digest = hashlib.sha256(GOOD.encode()).hexdigest()
    assert files == {"sub/good.py": digest, f"{folder}/sub/good.py": digest}
    assert list(functions) == [named[0], named[2], named[3]]
    assert functions[named[2]]([], [], [{"answer": 4}]) == [8.0]
    assert load_functions({"model": 1.0}) == ({}, {})


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["json.py"], "json/__init__.py; rename the file"),
        (["math.py"], "Python finds "),  # built in, or a library of C
        (["torch.py"], "torch/__init__.py; rename the file"),
        (["__main__.py"], "Python finds "),
        (["rules.v2.py"], "Python finds nothing; rename the file"),
        (["a/rules.py", "b/rules.py"], "a/rules.py; rename the file"),
    ],
)
def test_names_of_other_modules(folder: Path, files: list[str], found: str) -> None:
    """Worker processes would import the other by this name."""
    before = dict(sys.modules)
    for i, file in enumerate(files):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(f"def f{i}(prompts, responses, rows): return []\n")
    with pytest.raises(UserError, match=f"as the module '{Path(files[0]).stem}', which") as info:
        load_functions({f"{file}:f{i}": 1.0 for i, file in enumerate(files)})
    assert found in str(info.value)
    assert all(sys.modules[name] is module for name, module in before.items())


def test_a_file_of_another_run_is_not_in_the_way(folder: Path) -> None:
    """Nor is the bytecode of an earlier text of the same length and second."""
    for name in ("a", "b"):
        (folder / name).mkdir()
        text = f"def f(prompts, responses, rows):\n    return '{name}'\n"
        (folder / name / "rules.py").write_text(text, encoding="utf-8")
        loaded = load_functions({f"{name}/rules.py:f": 1.0})
        assert loaded.functions[f"{name}/rules.py:f"]([], [], []) == name
        assert sys.modules["rules"].__file__ == str(folder / name / "rules.py")
    (folder / "b" / "rules.py").write_text(text.replace("'b'", "'c'"), encoding="utf-8")
    assert load_functions({"b/rules.py:f": 1.0}).functions["b/rules.py:f"]([], [], []) == "c"


def test_a_function_that_fails_names_its_line(folder: Path) -> None:
    """The last line of the user's own file, though a neighbour's failed; the cause is kept."""
    source = "sub/good.py:nested"
    made = RewardFunctions(PPO, toy_tokenizer(), load_functions({source: 1.0}).functions)
    with pytest.raises(UserError) as info:
        made(TWO, ROWS)
    assert str(info.value) == f"ppo.rewards: {source} failed at sub/good.py:16: KeyError: 'missing'"
    assert isinstance(info.value.__cause__, KeyError)
    leaves = load_functions({"sub/good.py:leaves": 1.0}).functions
    with pytest.raises(UserError, match=r"failed at sub/good\.py:19: SystemExit: 0"):
        RewardFunctions(PPO, toy_tokenizer(), leaves)(TWO, ROWS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_it\n", "bad.py:1: ModuleNotFoundError: No module named"),
        ("x = 1\ny = 1 / 0\n", "bad.py:2: ZeroDivisionError: division by zero"),
        ("x = 1\n\ndef f(:\n", "bad.py:3: SyntaxError: invalid syntax"),
        ("raise SystemExit(0)\n", "bad.py:1: SystemExit: 0"),
        ("x = '\xff'\n", "SyntaxError: (unicode error) 'utf-8' codec can't decode"),
        ("x = 1\0\n", "null bytes"),
        ("import neighbour\nneighbour.first([])\n", "at bad.py:2: IndexError"),
        ("from neighbour import nothing_like_it\n", "bad.py:1: ImportError: cannot import name"),
        ("import bad_too\n", "bad_too.py:2: IndentationError: "),
        ("def __getattr__(name):\n    raise KeyError(name)\n", "at bad.py:2: KeyError: 'f'"),
        (
            "class E(Exception):\n  __str__ = None\nraise E\n",
            "at bad.py:3: E: (it cannot be shown)",
        ),
        (
            "raise BaseExceptionGroup('two', [KeyboardInterrupt(), ValueError()])\n",
            "bad.py:1: Base",
        ),
        ("raise KeyboardInterrupt\n", "at bad.py:1: KeyboardInterrupt"),
        ("def g(): g()\ng()\n", "at bad.py:1: RecursionError: maximum"),
        ("import time\ntime.sleep(60)\n", "at bad.py:2: it takes longer than ppo.reward_timeout"),
    ],
)
def test_files_that_cannot_be_imported(folder: Path, text: str, said: str) -> None:
    (folder / "bad.py").write_bytes(text.encode("latin-1"))
    (folder / "bad_too.py").write_text("if True:\nx = 1\n", encoding="utf-8")
    sys.path.append(str(folder / "sub"))
    with pytest.raises(UserError, match=r"^ppo\.rewards: 'bad\.py:f' cannot be imported") as info:
        load_functions({"model": 1.0, "bad.py:f": 1.0}, timeout=0.2)
    assert said in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("sub/gone.py:scaled", "the file 'sub/gone.py' does not exist (looked in "),
        ("sub.py:scaled", "the file 'sub.py' is a folder"),
        ("a\0/a.py:f", "cannot be looked for: embedded null byte"),
        ("~nobody-like-it/a.py:f", "cannot be looked for: Could not determine home directory"),
        ("sub/good.py:scales", "'scales' does not exist in 'sub/good.py'; define it as scales("),
        ("sub/good.py:number", "'number' is no function in 'sub/good.py'"),
    ],
)
def test_sources_that_are_not_there(folder: Path, source: str, said: str) -> None:
    (folder / "sub.py").mkdir()  # a folder is no file
    with pytest.raises(UserError) as info:
        load_functions({source: 1.0})
    assert str(info.value).startswith(f"ppo.rewards: {source!r}: ")
    assert said in str(info.value)
