"""Rows of stage 2 with a score each."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, NONE, config, write_jsonl
from _tiny import words
from _tokenizers import gpt2_like

from cores.config.data import DataSection
from cores.data import preference_data, show
from cores.data.values import LARGEST_MARGIN
from cores.errors import UserError

ROWS = [
    {"prompt": "2 + 2 =", "completion": " 4", "score": 5},
    {"prompt": "2 + 2 =", "completion": " 5", "score": "1"},
    {"prompt": "白い", "completion": "猫", "score": 3.0},
]


def read(folder: Path, rows: list[dict[str, Any]], kind: str = "pointwise", **reward: Any) -> Any:
    path = write_jsonl(folder / "rated.jsonl", rows)
    made = config(path, NONE, reward={"kind": kind, **reward})
    return preference_data(made, gpt2_like())


@pytest.mark.parametrize("kind", ["pointwise", "binned"])
def test_scores_are_read(kind: str, tmp_path: Path) -> None:
    """As numbers or as text, each beside prompt and reply with its stop token."""
    tokenizer = gpt2_like()
    data = read(tmp_path, ROWS, kind)
    assert [row["score"] for row in data.train] == [5.0, 1.0, 3.0]
    for given, row in zip(ROWS, data.train, strict=True):
        ids, cut = row["ids"], row["prompt_length"]
        assert tokenizer.decode(ids[:cut]) == given["prompt"]
        assert tokenizer.decode(ids[cut:-1]) == given["completion"]
        assert ids[-1] == tokenizer.eos_token_id
    assert "columns not read" not in "\n".join(data.report.lines())


def test_no_score_and_a_score_of_0(tmp_path: Path) -> None:
    """null is dropped and counted, an empty reply too; 0 and below are scores."""
    rows = [
        {"prompt": "a", "completion": "b", "score": score} for score in (0, -2.5, None, "", 1e6)
    ]
    rows.append({"prompt": "a", "completion": " ", "score": 1})
    data = read(tmp_path, rows)
    assert [row["score"] for row in data.train] == [0.0, -2.5, 1e6]
    assert "dropped: 2 no score, 1 empty reply" in "\n".join(data.report.lines())


@pytest.mark.parametrize(
    ("kind", "score", "said"),
    [
        ("binned", 0, "must be a whole number from 1 to 5"),
        ("binned", 6, "must be a whole number from 1 to 5"),
        ("binned", 2.5, "must be a whole number from 1 to 5"),
        ("binned", "good", "must be a whole number from 1 to 5"),
        ("pointwise", "good", "must be a number of at most 1e"),
        ("pointwise", True, "must be a number of at most 1e"),
        ("pointwise", [1], "must be a number of at most 1e"),
        ("pointwise", 10 * LARGEST_MARGIN, "must be a number of at most 1e"),
        ("pointwise", "nan", "must be a number of at most 1e"),
    ],
)
def test_what_is_no_score(kind: str, score: Any, said: str, tmp_path: Path) -> None:
    """Refused by its row."""
    rows = [*ROWS, {"prompt": "a", "completion": "b", "score": score}]
    with pytest.raises(UserError, match=r"rated\.jsonl.*4.*column 'score' " + said):
        read(tmp_path, rows, kind)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completion": "b"}, "none is score, which reward.kind pointwise learns"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score": 1}, "read as format preference"),
        ({"text": "a", "score": 1}, "read as format text, and reward.kind pointwise needs one"),
    ],
)
def test_other_rows(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Named by what they lack."""
    with pytest.raises(UserError, match=said):
        read(tmp_path, [row])


def test_conversations_under_a_chat_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score is of the last reply, whose beginning the prompt's length tells."""
    turns = [("user", "please bring a map"), ("assistant", "yes"), ("user", "now"),
             ("assistant", "at once")]  # fmt: skip
    row = {"messages": [{"role": r, "content": c} for r, c in turns], "score": 2}
    path = write_jsonl(tmp_path / "rated.jsonl", [row])
    tokenizer = words()
    data = preference_data(config(path, CHAT, reward={"kind": "binned"}), tokenizer)
    (found,) = data.train
    assert tokenizer.decode(found["ids"][found["prompt_length"] :]) == "at once <|im_end|>"
    shown = tmp_path / "shown.jsonl"
    show(data, tokenizer, DataSection(inspect=1, inspect_json=str(shown)))
    assert "3 trained" in capsys.readouterr().out
    line = json.loads(shown.read_text(encoding="utf-8"))
    assert (line["score"], line["class"]) == (2, 1), "a rating of 1 is class 0"


def test_a_reply_that_is_cut(tmp_path: Path) -> None:
    """Loses its end and is counted; a prompt without room is dropped."""
    rows = [
        {"prompt": "ab", "completion": " c d e f g h i j", "score": 1},
        {"prompt": "a b c d e f g h i j", "completion": " k", "score": 2},
    ]
    data = read(tmp_path, rows, max_length=6)
    assert [len(row["ids"]) for row in data.train] == [6]
    said = "\n".join(data.report.lines())
    assert "1 prompt as long as reward.max_length; truncated: 1" in said


@pytest.mark.parametrize("fields", [{"too_long": "split"}, {"join": ""}])
def test_what_texts_of_stage_1_become_is_no_matter(tmp_path: Path, fields: dict[str, str]) -> None:
    """Options of stage 1's texts stand beside ratings in one file of configuration."""
    made = config(write_jsonl(tmp_path / "rated.jsonl", ROWS), reward={"kind": "binned"})
    plain, beside = (
        preference_data(replace(made, data=data), gpt2_like()).train
        for data in (made.data, replace(made.data, **fields))
    )
    assert plain == beside


@pytest.mark.parametrize(("kind", "classes"), [("pointwise", [None] * 3), ("binned", [4, 0, 2])])
def test_rows_for_programs(kind: str, classes: list[int | None], tmp_path: Path) -> None:
    """Scores, and which of the bins each is in."""
    file = tmp_path / "rows.json"
    show(read(tmp_path, ROWS, kind), gpt2_like(), DataSection(inspect_json=str(file)))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["score"] for line in lines] == [5, 1, 3]
    assert [line.get("class") for line in lines] == classes
    assert lines[0]["segments"] == [["2 + 2 =", False], [" 4<|endoftext|>", True]]
