"""A judge behind an endpoint, and what words alone learn from."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from _endpoint import Server, endpoint

from scripts.evaluation.judges import EndpointJudge, JudgeError
from scripts.evaluation.reward import TRAIN_PAIRS, drawn


@pytest.fixture
def server() -> Iterator[str]:
    with endpoint() as address:
        yield address


def replies(*texts: str) -> Any:
    return SimpleNamespace(texts=list(texts))


def prompts(*texts: str) -> list[dict[str, Any]]:
    return [{"prompt": t, "turns": [{"role": "user", "content": t}]} for t in texts]


def test_a_request_that_fails_costs_its_prompt_at_most(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What passes is asked again; what does not leaves its prompt out, and is named; a refusal is
    not repeated; a server that is gone is not asked for hours."""
    monkeypatch.setattr("scripts.evaluation.judges.WAITS", (0.0, 0.0, 0.0))
    asked, first, second = prompts("a key", "a lamp", "tea"), replies(*"abc"), replies(*"def")
    lost: dict[str, Any] = {"a lamp": lambda times: 503, "a key": lambda times: times < 2 and 429}
    monkeypatch.setattr(
        Server, "fails",
        lambda text, times: next((how(times) for what, how in lost.items() if what in text), None),
    )  # fmt: skip
    Server.asked.clear()
    assert EndpointJudge(server, None).outcomes(asked, first, second) == [0.5, None, 0.5]
    said = capsys.readouterr().out
    assert "2 of 6 questions got no answer. The first: the prompt 'a lamp'" in said
    assert f"--judge {server}: answers 503" in said
    assert {n for text, n in Server.asked.items() if "a lamp" in text} == {4}
    assert {n for text, n in Server.asked.items() if "a key" in text} == {3}
    Server.asked.clear()
    lost["a lamp"] = lambda times: 401
    assert EndpointJudge(server, None).outcomes(asked, first, second)[1] is None
    assert {n for text, n in Server.asked.items() if "a lamp" in text} == {1}
    Server.asked.clear()
    many = prompts(*(f"a lamp to {i}" for i in range(200)))
    with pytest.raises(JudgeError, match=r"400 of 400 questions.*the prompt 'a lamp to \d+'.*401"):
        EndpointJudge(server, None).outcomes(many, replies(*["a"] * 200), replies(*["b"] * 200))
    assert Server.asked.total() < 50
    lost.clear()
    lost |= {f"a lamp to {i}\n": lambda times: 401 for i in range(0, 200, 4)}
    found = EndpointJudge(server, None).outcomes(many, replies(*["a"] * 200), replies(*["b"] * 200))
    assert [i for i, outcome in enumerate(found) if outcome is None] == list(range(0, 200, 4))


def test_one_order_alone_judges_nothing(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the questions are answered, and no prompt has both its answers."""
    monkeypatch.setattr(
        Server, "fails", lambda text, times: 401 if "[Reply A]\nlater" in text else None
    )
    first, second = replies(*["now"] * 4), replies(*["later"] * 4)
    with pytest.raises(JudgeError, match="4 of 8 questions got no answer"):
        EndpointJudge(server, None).outcomes(prompts(*"abcd"), first, second)


def test_a_judge_without_verdicts_has_failed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "says", "I cannot tell.")
    with pytest.raises(JudgeError, match=r"answers hold none of \[\[A\]\].*--judge-model"):
        EndpointJudge(server, None).outcomes(prompts("a key"), replies("a"), replies("b"))


def test_words_are_learned_from_all_sources() -> None:
    """Where there are more pairs than TF-IDF reads, any of them, the same each time."""
    train = [{"source": i // 30_000} for i in range(60_000)]
    one, again, other = drawn(train, 0), drawn(train, 0), drawn(train, 1)
    assert len(one) == TRAIN_PAIRS
    assert 0.45 < sum(row["source"] for row in one) / TRAIN_PAIRS < 0.55
    assert [*map(id, one)] != [*map(id, other)]
    assert all(a is b for a, b in zip(one, again, strict=True))
    assert drawn(train[:5], 0) == train[:5]
