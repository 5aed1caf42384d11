"""Parts of the chat page that need no model."""

from pathlib import Path
from socket import socketpair

import pytest
from _helpers import rows

from cores.errors import UserError
from scripts.chat.server import Listener
from scripts.chat.voices import Controls, Reply
from scripts.chat.votes import Round, record
from scripts.evaluation.gates import gate_of

PROMPT = "please bring a towel to room 7"


def test_a_vote_begins_a_line_of_its_own(tmp_path: Path) -> None:
    """Whoever wrote the file's last line left out its end."""
    file = tmp_path / "votes.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    made = Round([{"role": "user", "content": PROMPT}], Controls(1.0, 1.0, 8, 0), blind=False)
    for letter, text in (("A", "yes"), ("B", "no")):
        made.replies[letter] = Reply(letter, text, 1, True, None, 0.0)
    assert record(made, "A", file, keep=True) == 1
    assert [row["chosen"] for row in rows(file)] == ["b", "yes"]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("gate.txt", "def f(text): ...", "its name must end in .py"),
        ("gate.py", "import no_such_module", "cannot be imported: ModuleNotFoundError"),
        ("gate.py", "f = 1", "has no function 'f'"),
        ("none.txt", None, "there is no such folder and no such file"),
    ],
)
def test_a_gate_that_is_none(name: str, text: str | None, why: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"--gate: .*{why}"):
        gate_of(f"{tmp_path / name}:f")


def test_a_gate_that_fails(tmp_path: Path) -> None:
    """Named, with the text; a folder that is none of stage 1 too."""
    (tmp_path / "gate.py").write_text("def f(text): return 1 / len(text)")
    gate = gate_of(f"{tmp_path / 'gate.py'}:f")
    assert gate is not None
    for text, why in (("", "failed on '': ZeroDivisionError"), ("ab", "returned 0.5 for 'ab'")):
        with pytest.raises(UserError, match=f"--gate: .*gate.py:f {why}"):
            gate(text)
    (tmp_path / "stage.json").write_text('{"stage": "ppo"}')
    with pytest.raises(UserError, match=r"--gate: .* is of the stage 'ppo'"):
        gate_of(str(tmp_path))


def test_a_browser_that_left_is_noticed() -> None:
    """Though nothing is sent to it, as behind a gate; what it sends is no leaving."""
    ours, theirs = socketpair()
    with ours:
        listener = Listener(ours)
        assert not listener.is_set()
        theirs.send(b"x")
        assert not listener.is_set()
        ours.recv(1)
        theirs.close()
        assert listener.is_set()
