"""Chat templates are programs of somebody else's: bounded, and every failure is a paragraph."""

import resource
import signal
import time
from copy import deepcopy

import pytest
from _tokenizers import chat_like

from cores.data.rendering import rendered
from cores.errors import UserError

TURNS = [{"role": "user", "content": "Hi"}]
NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (NESTED, "takes more than 0.2 seconds"),
        ("{{ 10 ** (10 ** 8) }}", "takes more than 0.2 seconds"),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "Range too big"),
        ("{{ 'x' * 10 ** 11 }}", "MemoryError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ missing.name }}", "undefined"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages + 1 }}", "can only concatenate list"),
        ("{% for", "unexpected"),
        ("", "makes 0 characters"),
        ("{{ 'x' * 2000 }}", "makes 2000 characters"),
    ],
)
def test_templates_that_fail(monkeypatch: pytest.MonkeyPatch, template: str, said: str) -> None:
    """None hangs, none fills the memory, and the row is named."""
    monkeypatch.setattr("cores.data.rendering.SECONDS", 0.2)
    monkeypatch.setattr("cores.data.rendering.LONGEST", 1000)
    tokenizer = deepcopy(chat_like())
    tokenizer.chat_template = template
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^a.jsonl:3: the tokenizer's chat template") as caught:
        rendered(tokenizer, TURNS, True, "a.jsonl:3")
    assert said in str(caught.value)
    assert "template.kind to roles" in str(caught.value)
    assert time.monotonic() - start < 5


def test_nothing_is_left_behind() -> None:
    """Neither an alarm nor a limit of memory outlives the rendering."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.getsignal(signal.SIGALRM)
    assert rendered(chat_like(), TURNS, True, "a").endswith("<|im_start|>assistant\n")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert resource.getrlimit(resource.RLIMIT_AS) == before
