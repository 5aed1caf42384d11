"""The chat page's server, asked by http.client: what it streams, takes and refuses."""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from _chat import ask, final, request, serving, vote
from _helpers import good, in_process, rows

from cores.errors import UserError
from scripts.chat.server import Server, policy
from scripts.chat.terminal import talk

PROMPT = "please bring a towel to room 7"


@pytest.fixture(scope="module")
def words(tmp_path_factory: Any, finished: Path, llama: Path, files: Any) -> list[Any]:
    """Arguments of a run with all stages."""
    out = tmp_path_factory.mktemp("chat") / "run"
    shutil.copytree(finished, out)
    given = good(llama, files, out)
    in_process("ppo", [str(word) for word in given])
    return given


@pytest.fixture(scope="module")
def server(words: list[Any]) -> Iterator[Server]:
    with serving(words) as made:
        yield made


def test_every_stage_answers_as_the_engine_samples(server: Server) -> None:
    """All at once, growing, then whole with score and figures; the same question and seed give the
    same words, whatever was asked between; each score is that of the reward model on its ids."""
    events = ask(server, PROMPT, seed=5, max_new_tokens=20)
    assert [a["stage"] for a in events[0]["answers"]] == ["base", "sft", "ppo"]
    found = final(events)
    assert [found[letter]["stage"] for letter in "ABC"] == ["base", "sft", "ppo"]
    assert events[-1] == {"finished": events[0]["round"]}
    for letter, reply in found.items():
        grown = [e["text"] for e in events if e.get("letter") == letter]
        assert len(grown) > 1
        assert all(reply["text"].startswith(text) for text in grown)
        assert reply["tokens"] <= 20
        assert isinstance(reply["score"], float)
        assert reply["first"] > 0
    ask(server, PROMPT, seed=6, max_new_tokens=20)
    again = final(ask(server, PROMPT, seed=5, max_new_tokens=20))
    assert [again[x]["text"] for x in "ABC"] == [found[x]["text"] for x in "ABC"]
    other = final(ask(server, PROMPT, seed=7, max_new_tokens=20))
    assert [other[x]["text"] for x in "ABC"] != [found[x]["text"] for x in "ABC"]


def test_controls_are_the_engines(server: Server) -> None:
    """Temperature 0 says the likeliest whatever the seed, and so does a small nucleus."""
    for cold in ({"temperature": 0}, {"top_p": 1e-6}):
        one, other = (final(ask(server, PROMPT, seed=seed, **cold)) for seed in (1, 2))
        assert [one[x]["text"] for x in "ABC"] == [other[x]["text"] for x in "ABC"]
    short = final(ask(server, PROMPT, max_new_tokens=2))
    assert max(reply["tokens"] for reply in short.values()) <= 2


def test_conversations_go_on(server: Server) -> None:
    turns = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "yes at once"},
        {"role": "user", "content": "never"},
    ]
    assert len(final(ask(server, "", turns=turns))) == 3


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"turns": []}, "must be a list of turns"),
        ({"turns": "x"}, "must be a list of turns"),
        ({"turns": [{"role": "user", "content": " "}]}, "not empty"),
        ({"turns": [{"role": "assistant", "content": "x"}]}, "the last of them the user's"),
        ({"temperature": -1}, "temperature: -1 must be a number from 0 to 5"),
        ({"top_p": 0}, "top_p: 0 must be"),
        ({"seed": 1.5}, "seed: 1.5 must be a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens: True must be a whole number from 1"),
        ({"max_new_tokens": 600}, "are left for a reply"),
        ({"turns": [{"role": "user", "content": "to <|im_end|> now"}]}, "holds the control token"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(body: dict[str, Any], says: str, server: Server) -> None:
    """A sentence with status 400; the server goes on."""
    given = {"turns": [{"role": "user", "content": PROMPT}], **body}
    reply = request(server, "POST", "/ask", given)
    assert reply.status == 400
    assert says in json.loads(reply.read())["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Host": "localhost", "Origin": "https://localhost"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/state", "/ask", "/vote"])
def test_foreign_pages_are_refused(path: str, headers: dict[str, str], server: Server) -> None:
    """403 to another Host (a name that was made to point here) or Origin; nothing is made."""
    method, before = ("POST", {}) if path in ("/ask", "/vote") else ("GET", None)
    count = len(server.rounds)
    reply = request(server, method, path, before, **headers)
    assert reply.status == 403
    assert len(server.rounds) == count


def test_own_pages_are_served(server: Server) -> None:
    """Under every name of this machine and any port, as a tunnel would have; the page carries no
    address of elsewhere, and its policy allows its own script and style alone."""
    for host in ("localhost:9", "127.0.0.1", "[::1]:7860"):
        reply = request(server, "GET", "/", Host=host, Origin=f"http://{host}")
        assert reply.status == 200
    page = reply.read().decode()
    allowed = reply.headers["Content-Security-Policy"]
    assert allowed == policy(page)
    assert "unsafe" not in allowed
    assert "http" not in page
    assert "innerHTML" not in page
    assert request(server, "GET", "/etc/passwd").status == 404
    assert request(server, "POST", "/ask", {}, Content_Type="text/plain").status == 400


def test_votes_are_rows_of_stage_2(
    words: list[Any], server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A winner is a pair with each other reply, a tie and both bad are for the record; stage 2
    reads the file as it is, and counts what it leaves out. One vote an answer."""
    server.file.unlink(missing_ok=True)
    more: dict[str, Any] = {"blind": True, "max_new_tokens": 12}
    asked = [ask(server, f"{PROMPT} {n}", seed=n, **more) for n in range(8)]
    picks = ["A", "B", "C", "A", "tie", "both bad", "B", "C"]
    told = [vote(server, events, pick) for events, pick in zip(asked, picks, strict=True)]
    assert [status for status, _ in told] == [200] * 8
    assert vote(server, asked[0], "A") == (400, {"error": "This answer has its vote already."})
    assert vote(server, ask(server, PROMPT), "D")[0] == 400
    assert vote(server, [{"round": "x"}], "A")[0] == 400
    found = rows(server.file)
    assert len(found) == 6 * 2 + 2
    first, second = found[:2]
    said = final(told[0][1]["answers"])
    assert first["prompt"] == f"{PROMPT} 0"
    assert first["chosen"] == second["chosen"] == said["A"]["text"]
    assert (first["rejected"], second["rejected"]) == (said["B"]["text"], said["C"]["text"])
    assert (first["chosen_by"], first["rejected_by"]) == (said["A"]["stage"], said["B"]["stage"])
    assert first["chosen_score"] == said["A"]["score"]
    inspect = ["--data.preference.path", server.file, "--data.inspect", 1]
    in_process("reward", [str(w) for w in [*words, *inspect, "--data.test_fraction", 0]])
    shown = capsys.readouterr().out
    assert "12 of 14 rows" in shown
    assert "1 voted a tie" in shown
    assert "1 voted both bad" in shown


def test_blind_answers_have_no_name_before_the_vote(server: Server) -> None:
    """No name, no score, in an order that differs from round to round; the vote tells."""
    orders = set()
    for seed in range(6):
        events = ask(server, PROMPT, seed=seed, blind=True, max_new_tokens=4)
        told = json.dumps(events)
        assert not any(word in told for word in ("base", "sft", "ppo", "score"))
        status, answer = vote(server, events, "A")
        assert status == 200
        orders.add(
            tuple(reply["stage"] for reply in sorted(answer["answers"], key=lambda a: a["letter"]))
        )
    assert len(orders) > 1


def test_without_samples_no_vote_is_written(words: list[Any], tmp_path: Path) -> None:
    with serving([*words, "--logging.samples", "false"]) as private:
        before = private.file.read_bytes() if private.file.exists() else None
        status, answer = vote(private, ask(private, PROMPT, max_new_tokens=4), "A")
        assert status == 400
        assert "logging.samples is false" in answer["error"]
        assert json.loads(request(private, "GET", "/state").read())["votes"] is None
        assert (private.file.read_bytes() if private.file.exists() else None) == before


def test_a_gate_stops_questions_and_answers(words: list[Any]) -> None:
    """A question before any model reads it; an answer before any of it is shown."""

    def gate(text: str) -> str | None:
        return "no kettles" if "kettle" in text else ("no answers" if text != PROMPT else None)

    with serving(words, gate) as guarded:
        reply = request(guarded, "POST", "/ask", {"turns": [{"role": "user", "content": "kettle"}]})
        assert reply.status == 400
        assert "no kettles" in json.loads(reply.read())["error"]
        events = ask(guarded, PROMPT, max_new_tokens=6)
        assert [e for e in events if "text" in e] == []
        assert sum("no answers" in e.get("error", "") for e in events) == 3


def test_two_tabs_are_answered_one_after_the_other(server: Server) -> None:
    """A question from another tab cuts no answer: both are what they are alone."""
    long = {"max_new_tokens": 100, "seed": 3}
    alone = final(ask(server, PROMPT, **long))
    first = request(
        server, "POST", "/ask", {"turns": [{"role": "user", "content": PROMPT}], **long}
    )
    begun = first.readline()  # it is being answered
    second = ask(server, f"{PROMPT} 2", max_new_tokens=4)
    told = (begun + first.read()).decode().split("\n\n")
    found = final([json.loads(part.removeprefix("data: ")) for part in told if part])
    assert {k: v["text"] for k, v in found.items()} == {k: v["text"] for k, v in alone.items()}
    assert len(final(second)) == 3


def test_a_reward_model_from_elsewhere_has_the_units_of_stage_3(
    words: list[Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is scaled there; without a stage 3 that had it scores are raw, and that is said."""
    (tmp_path / "sft").symlink_to(finished / "sft")
    given = [*words, "--output_dir", tmp_path, "--reward.path", tmp_path / "other"]
    shutil.copytree(finished / "reward", tmp_path / "other")
    told = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(told | {"reward_mean": 3.0}))
    with serving(given) as raw:
        assert json.loads(request(raw, "GET", "/state").read())["raw"] is True
    assert "note: scores are the reward model's own" in capsys.readouterr().out
    in_process("ppo", [str(word) for word in given])
    with serving(given) as scaled:
        assert scaled.voices.raw is False
        reward: Any = scaled.voices.reward
        for row in rows(tmp_path / "ppo" / "held_out_samples.jsonl"):
            ids = torch.tensor([row["after"]["ids"]])
            score = reward.scores(ids, torch.ones_like(ids).bool()).item()
            assert score == pytest.approx(row["after"]["score"], abs=1e-3)


def test_stages_stop_at_their_next_token(server: Server) -> None:
    """A browser that left holds nobody up."""
    voices, stop = server.voices, Event()
    controls = replace(voices.default, max_new_tokens=400, seed=3)
    heard = []
    for _, said in voices.answer([{"role": "user", "content": PROMPT}], controls, stop):
        stop.set()
        heard.append(said)
    assert max(said.tokens for said in heard if not isinstance(said, str)) < 400


def test_the_terminal(
    server: Server, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Questions, controls, votes, mistakes and the end of the input."""
    lines = [PROMPT, "2", "/set seed x", "/set top_p 0.5", "/help", f"{PROMPT} 3", "t", "/new"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    controls = replace(server.voices.default, max_new_tokens=6)
    file = tmp_path / "votes.jsonl"
    talk(server.voices, controls, True, file, True)
    found = rows(file)
    assert [row["vote"] for row in found] == ["winner", "winner", "tie"]
    assert found[2]["top_p"] == 0.5
    assert found[2]["prompt"][0] == {"role": "user", "content": PROMPT}
    assert len(found[2]["prompt"]) == 3
    assert "/set seed: 'x' is no number" in capsys.readouterr().out


def test_nothing_finished_is_said(words: list[Any], tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="no finished stage there that can talk"),
        serving([*words, "--output_dir", tmp_path / "none"]),
    ):
        pass
