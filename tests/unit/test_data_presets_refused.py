"""Presets of `format`: prompts that are texts, scores, counts, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, NONE, config, write_jsonl
from _tokenizers import chat_like, gpt2_like

from cores.config.data import Format, SourceSection
from cores.config.schema import Config, RewardSection
from cores.data import preference_data, sft_data
from cores.data.columns import SIGNS
from cores.data.formats import Stage
from cores.data.presets import PRESETS, converted
from cores.data.sources import Row
from cores.errors import UserError

KTO = [
    {"prompt": "A?", "completion": "B", "label": True},
    {"prompt": "A?", "completion": "C", "label": True},
    {"prompt": "A?", "completion": "D", "label": False},
    {"prompt": "E?", "completion": "F", "label": False},
]


def test_summaries(tmp_path: Path) -> None:
    """The prompt of the paper for a post; an article has neither title nor subreddit."""
    posts = [
        {"subreddit": "tea", "title": "A pot", "post": "It broke.", "article": None},
        {"post": None, "article": "News."},
    ]
    rows = [
        {"info": info, "summaries": [{"text": " Old"}, {"text": " New"}], "choice": 1}
        for info in posts
    ]
    path, tokenizer = write_jsonl(tmp_path / "a.jsonl", rows), gpt2_like()
    built = config(path, NONE, source={"format": "summarize"})
    texts = [tokenizer.decode(row["chosen_ids"]) for row in preference_data(built, tokenizer).train]
    end = tokenizer.eos_token
    assert texts == [
        f"SUBREDDIT: r/tea\n\nTITLE: A pot\n\nPOST: It broke.\n\nTL;DR: New{end}",
        f"Article:\n\nNews.\n\nTL;DR: New{end}",
    ]


def test_a_transcript_stays_one_without_turns(tmp_path: Path) -> None:
    """template.kind none puts nothing between turns, so the prompt is verbatim."""
    prompt = "\n\nHuman: A?\n\nAssistant: "
    rows = [{"prompt": prompt, "answers": [{"answer": "B", "rank": 1}]}]
    path, tokenizer = write_jsonl(tmp_path / "a.jsonl", rows), gpt2_like()
    built = config(path, NONE, source={"format": "nectar"})
    (row,) = sft_data(built, tokenizer).train
    assert tokenizer.decode(row["input_ids"]) == f"{prompt}B{tokenizer.eos_token}"


def made(
    rows: list[dict[str, Any]], preset: Format, stage: Stage = "reward", kind: Any = "pairwise",
    path: str = "rows.jsonl",
) -> tuple[list[dict[str, Any]], dict[str, int]]:  # fmt: skip
    """Columns of the rows that a preset makes, and its counts."""
    read = [Row(f"{path}:{n}", row) for n, row in enumerate(rows, 1)]
    config = Config(reward=RewardSection(kind=kind))
    source = SourceSection(path=path, format=preset)
    made, _, counts = converted(read, source, config, stage, "data.x")
    return [row.columns for row in made], dict(counts or {})


def refused(rows: list[Any], preset: Any, stage: Stage = "reward", kind: Any = "pairwise") -> str:
    with pytest.raises(UserError) as caught:
        made(rows, preset, stage, kind)
    message = str(caught.value)
    assert "\n" not in message, "one paragraph"
    return message


def test_it_is_counted(tmp_path: Path) -> None:
    """Before training and in stage.json: rows, what was made of them, what was left out and why.
    The counts are of the source, of which some rows may be held out."""
    built = config(write_jsonl(tmp_path / "a.jsonl", KTO), CHAT, source={"format": "kto"})
    report = preference_data(built, chat_like()).report
    assert report.lines()[0].endswith(
        "(preference); rows read by kto: 4, prompts without two scored replies left out: 1, ties "
        "left out: 1, pairs made: 2"
    )
    assert report.to_json()["train"]["preset"]["pairs made"] == 2
    report = sft_data(built, chat_like()).report
    assert report.lines()[0].endswith("replies taken: 2, worse replies left out: 2")


def test_nothing_is_counted_without_a_preset(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "A?", "completion": "B"}])
    assert "preset" not in sft_data(config(path, CHAT), chat_like()).report.to_json()["train"]


def test_held_out_rows_of_a_file_of_their_own(tmp_path: Path) -> None:
    """They go through the preset too."""
    path, other = (write_jsonl(tmp_path / name, KTO) for name in ("a.jsonl", "b.jsonl"))
    built = config(path, CHAT, source={"format": "kto", "test_path": other})
    data = preference_data(built, chat_like())
    assert len(data.train) == len(data.test) == 2
    assert data.report.to_json()["test"]["preset"]["pairs made"] == 2


RATED = [
    {"prompt": "A?", "response": "B", "helpfulness": 0},
    {"prompt": "A?", "response": "C", "helpfulness": "3.5"},
    {"prompt": "A?", "response": "D", "helpfulness": None},
]


def test_scores_for_ratings() -> None:
    """A reply with a rating is a row of its own; bins count from 1, and helpfulness from 0."""
    rows, counts = made(RATED, "helpsteer2", kind="pointwise")
    assert rows == [
        {"prompt": "A?", "completion": "B", "score": 0.0},
        {"prompt": "A?", "completion": "C", "score": 3.5},
    ]
    assert counts["replies without a score left out"] == 1
    binned, _ = made(RATED, "helpsteer2", kind="binned")
    assert [row["score"] for row in binned] == [1.0, 4.5]
    completions = [{"response": "B", "overall_score": 7}]
    rows = [{"instruction": "A?", "completions": completions}]
    assert made(rows, "ultrafeedback", kind="binned")[0][0]["score"] == 7


def test_no_scores_where_replies_are_compared() -> None:
    """A rank or a vote is no rating."""
    row = {"history": "A?", "human_ref_A": "B", "human_ref_B": "C", "labels": 1}
    assert refused([row], "shp", kind="binned") == (
        "rows.jsonl:1: replies are compared there, and none has a score of its own, which does not "
        "fit data.x.format shp under reward.kind binned. It expects {history, human_ref_A, "
        "human_ref_B, labels}; correct the row, or choose another format (docs/data.md)."
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_rows_of_another_form(preset: str, stage: Stage) -> None:
    """Row, key and form are named."""
    told = refused([{"question": 1, "data": [], "info": None, "input": "x"}], preset, stage)
    assert told.startswith("rows.jsonl:1: '")
    assert f"does not fit data.x.format {preset}. It expects {{" in told.replace("trees ", "")


@pytest.mark.parametrize(
    ("preset", "row", "told"),
    [
        ("kto", {**KTO[0], "label": "maybe"}, "'label' must be a number, but holds str 'maybe'"),
        ("kto", {**KTO[0], "label": 2}, "'label' is 2, not true or false"),
        ("kto", {**KTO[0], "label": None}, "'label' is None, not true or false"),
        (
            "shp",
            {"history": "A?", "human_ref_A": "B", "human_ref_B": "C", "labels": 3},
            "'labels' is 3, not 0 or 1",
        ),
        ("helpsteer2", {**RATED[0], "helpfulness": "nan"}, "'helpfulness' must be a number"),
        (
            "helpsteer2",
            {**RATED[0], "prompt": "A?<extra_id_1>Nobody\nB"},
            "'prompt' has <extra_id_1> before 'Nobody', not User or Assistant",
        ),
        (
            "ultrafeedback",
            {"instruction": "A?", "completions": [{"overall_score": 1}]},
            "rows.jsonl:1, item 1 of 'completions': 'response' is missing (found: overall_score)",
        ),
        ("ultrafeedback", {"instruction": "A?", "completions": ["B"]}, "list of objects"),
        ("argilla", {"prompt": "A?", "chosen": "B", "rejected": "C"}, "'chosen_rating' is missing"),
        (
            "summarize",
            {"info": {"article": "A"}, "summaries": [{"text": "B"}], "choice": 0},
            "'summaries' holds 1, not two",
        ),
        (
            "label_studio",
            {
                "data": {"prompt": "A?", "answer1": "B", "answer2": "C"},
                "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "both"}}]}],
            },
            "an annotation selects 'both', not left or right",
        ),
        (
            "oasst",
            {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "B"},
            "'parent_id' '1' is no message of the source",
        ),
        (
            "oasst",
            {"message_id": "1", "parent_id": None, "role": "user", "text": "B"},
            "'role' is 'user', not one of prompter, assistant",
        ),
    ],
)
def test_values_that_do_not_fit(preset: str, row: dict[str, Any], told: str) -> None:
    assert told in refused([row], preset)


def test_a_tree_that_ends_with_a_question() -> None:
    """Nothing after the last reply is learned, and a question alone is left out."""
    further = {"text": "C?", "role": "prompter", "rank": None, "replies": []}
    reply = {"text": "B", "role": "assistant", "rank": 0, "replies": [further]}
    trees = [
        {"prompt": {"text": "A?", "role": "prompter", "replies": replies}}
        for replies in ([reply], [], None)
    ]
    rows, counts = made(trees, "oasst", "sft")
    assert rows == [{"prompt": [{"role": "user", "content": "A?"}], "completion": "B"}]
    assert counts["questions without a reply left out"] == 3


def test_a_message_that_stands_twice() -> None:
    row = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "A?"}
    assert "'message_id' '1' stands in rows.jsonl:1 too" in refused([row, row], "oasst")


def test_a_stage_that_gets_nothing() -> None:
    """Wanted replies alone make no pair, unwanted ones no demonstration."""
    assert refused(KTO[:1], "kto") == (
        "data.x.format kto: nothing of 'rows.jsonl' is left for this stage (rows read by kto: 1, "
        "prompts without two scored replies left out: 1); give other rows, or choose another "
        "format (docs/data.md)."
    )
    assert "worse replies left out: 1" in refused(KTO[2:3], "kto", "sft")


def test_columns_beside_the_form() -> None:
    """Stages 1 and 2 see what the preset does not read, so that it is named or refused; reward
    functions of stage 3 see the row as it was."""
    row = {**KTO[0], "language": "en", "tools": [{}]}
    assert made([row], "kto", "sft")[0] == [
        {"language": "en", "tools": [{}], "prompt": "A?", "completion": "B"}
    ]
    assert made([row], "kto", "ppo")[0] == [row]


def test_tools_of_a_preference_are_not_lost(tmp_path: Path) -> None:
    """They stand within `input`."""
    turn = {"role": "assistant", "content": "B"}
    asked = {"messages": [{"role": "user", "content": "A?"}], "tools": [{"type": "function"}]}
    row = {"input": asked, "preferred_output": [turn], "non_preferred_output": [turn]}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    built = config(path, CHAT, source={"format": "openai_preference"})
    with pytest.raises(UserError, match=r"a.jsonl:1: column 'tools'"):
        preference_data(built, chat_like())


def test_pairs_that_are_no_pairs() -> None:
    """Of whole conversations: sides that part before the reply, and a prompt of another one."""

    def turns(*texts: str) -> list[dict[str, str]]:
        speakers = ("user", "assistant") * 2
        return [{"role": r, "content": t} for r, t in zip(speakers, texts, strict=False)]

    ratings = {"chosen_rating": 2, "rejected_rating": 1}
    fits = {"chosen": turns("A?", "B"), "rejected": turns("A?", "C"), **ratings}
    parts = {**fits, "rejected": turns("D?", "C")}
    rows, counts = made(
        [fits, parts, {**fits, "prompt": "D?"}, {**fits, "prompt": "A?"}], "argilla"
    )
    assert [row["prompt"] for row in rows] == [turns("A?")] * 2
    assert counts["pairs that do not differ in one last reply: left out"] == 1
    assert counts["prompt and pair disagree: left out"] == 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": "A?", "response": "B", "helpfulness": 1},
            "Perhaps these are rows for data.sft.format helpsteer2.",
        ),
        ({"prompt": "A?", "completion": "B", "label": False}, "; format kto reads it"),
        ({"instruction": "A?", "output": "B", "kto_tag": False}, "; format kto reads it"),
        ({"text": "A?", "role": "assistant", "parent_id": "1"}, "; format oasst reads it"),
    ],
)
def test_rows_of_a_preset_without_its_name(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    """None is learned as something else; the error names the preset."""
    built = config(write_jsonl(tmp_path / "a.jsonl", [row]), CHAT)
    with pytest.raises(UserError, match=re.escape(told)):
        sft_data(built, chat_like())


def test_signs_name_presets() -> None:
    """What an error says of rows without a format."""
    assert set(SIGNS.values()) <= set(PRESETS)
