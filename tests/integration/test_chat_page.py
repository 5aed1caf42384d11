"""The chat page in a real browser, what models say being as hostile as it can be."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from _browser import Browser, browser
from _helpers import rows

from scripts.chat.server import Server
from scripts.chat.voices import Controls, Reply

HOSTILE = (
    "</div><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>\n`${1}` \u202e &lt;"
)


class Voices:
    """Says hostile things, at once."""

    engines = dict.fromkeys(("sft", "ppo"))
    positions = 512
    reward = None
    raw = False
    default = Controls(1.0, 1.0, 8, 0)

    def row(self, turns: Any, controls: Controls) -> dict[str, Any]:
        return {}

    def answer(self, turns: Any, controls: Controls, stop: Any, apart: bool) -> Iterator[Any]:
        for stage in self.engines:
            yield stage, HOSTILE[:9]
        yield "sft", Reply("sft", HOSTILE, 8, True, 0.5, 0.01)
        if len(turns) > 1:
            yield "ppo", ValueError(HOSTILE)
        else:
            yield "ppo", Reply("ppo", "x" * 300, 8, False, -0.5, 0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    voices: Any = Voices()
    made = Server(voices, voices.default, tmp_path / "votes.jsonl", True, 0)
    Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def send(page: Browser, text: str, **fields: Any) -> None:
    """Fill the form in and send it."""
    for name, value in {"prompt": text, **fields}.items():
        page.run(f"document.getElementById({name!r}).value = {value!r}; 0")
    page.run("document.getElementById('form').requestSubmit(); 0")


def test_a_person_asks_votes_and_goes_on(server: Server) -> None:
    """Nothing that a model says runs, or becomes markup; nothing is asked of anywhere else; no
    error on the console; nothing is wider than a phone; the vote is in the file."""
    own = f"http://localhost:{server.server_port}/"
    with browser() as page:
        page.look(390, 844, dark=True)
        page.open(own)
        page.until("document.getElementById('temperature').value === '1'")
        send(page, "<b>taxi</b>", seed="41")
        page.until("document.querySelectorAll('#picks button').length === 4")
        assert page.run("document.querySelector('.card .text').textContent") == HOSTILE
        assert page.run("document.querySelectorAll('#answers *:is(img, script, b)').length") == 0
        assert page.run("document.querySelector('.turn .text').textContent") == "<b>taxi</b>"
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run("document.getElementById('seed').value") == "42"
        dark = page.run("getComputedStyle(document.body).backgroundColor")
        page.look(1280, 900, dark=False)
        assert page.run("getComputedStyle(document.body).backgroundColor") != dark
        page.run("document.querySelector('[data-pick=A]').click(); 0")
        page.until("document.getElementById('voted').textContent === 'Noted: sft.'")
        (row,) = rows(server.file)
        assert (row["prompt"], row["chosen"], row["seed"]) == ("<b>taxi</b>", HOSTILE, 41)
        send(page, "more")
        page.until("document.querySelectorAll('.card .error').length === 1")
        said = page.run("[...document.querySelectorAll('.turn .text')].map((x) => x.textContent)")
        assert said == ["<b>taxi</b>", HOSTILE, "more"]  # the winner is what it goes on from
        assert page.run("window.ran") is None
        assert page.problems == []
        assert {address.removeprefix(own) for address in page.asked} <= {"", "state", "ask", "vote"}
