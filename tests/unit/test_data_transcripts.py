"""Transcripts taken apart into turns, and where the two texts of a pair part."""

from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, NONE, ROLES, config, write_jsonl
from _tokenizers import chat_like, gpt2_like

from cores.config.template import RoleTemplate, TemplateSection
from cores.data import preference_data, prompt_data, sft_data
from cores.data.mixture import held_out
from cores.data.transcripts import parse, part_texts

ASK = "\n\nHuman: Hi\n\nAssistant:"
LONG = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A towel，请。\n\nAssistant:"
STAGES = (sft_data, preference_data, prompt_data)


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    named = [
        {"role": r, "content": c} for r, c in zip(roles[: len(contents)], contents, strict=True)
    ]
    return [{"role": "system", "content": system}, *named] if system else named


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LONG + " 好的", turns("Hi", "Yes?", "A towel，请。", "好的")),
        (ASK, turns("Hi", "")),
        ("Human: Hi\n\nAssistant:  two", turns("Hi", " two")),  # one space belongs to the colon
        ("\n\nHuman: 1\n\n2\n\nAssistant: a\nHuman: b", turns("1\n\n2", "a\nHuman: b")),
        ("Be kind.\n\nHuman: Hi\n\nAssistant: Yes", turns("Hi", "Yes", system="Be kind.")),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", turns("a\n\nb", "c")),
        ("Human: \n盐呢？\n\nAssistant: \n在这。", turns("盐呢？", "在这。")),  # BELLE's form
        ("Human: \nHi\n\nAssistant: \n", turns("Hi", "")),
        ("\r\n\r\nHuman: a\r\n\r\nAssistant: \r\nb\r\nc", turns("a", "b\r\nc")),
        ("Human: \n\nAssistant:\nHi", turns("", "\nHi")),
        ("Hi there", []),
        ("The Human: no", []),
        ("", []),
    ],
)
def test_turns_by_hand(text: str, expected: list[dict[str, str]]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("lines", ["", "\n", "\n\n"])
def test_what_a_template_puts_before_a_turn_is_no_part_of_it(lines: str) -> None:
    """BELLE's replies begin with a line break of their own at times."""
    belle = TemplateSection(
        kind="roles",
        user=RoleTemplate("Human: \n", "\n\n"),
        assistant=RoleTemplate("Assistant: \n"),
    )
    text = f"Human: \n{lines}盐呢？\n\nAssistant: \n{lines}在这。"
    assert parse(text, belle) == turns(f"{lines}盐呢？", f"{lines}在这。")
    hh = TemplateSection(kind="roles", user=RoleTemplate("\n\nHuman: "))
    assert parse(LONG, hh) == parse(LONG)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "rests"),
    [
        (ASK + " Yes.", ASK + " No.", ASK, (" Yes.", " No.")),
        (ASK + " Yes.", ASK + " Yes, sir.", ASK, (" Yes.", " Yes, sir.")),
        # the last marker that both have, though they differ only later
        (LONG + " Of course", LONG + " Of late", LONG, (" Of course", " Of late")),
        (LONG + " A", LONG[:-12] + "?\n\nAssistant: B", "\n\nHuman: Hi\n\nAssistant:", None),
        (
            "\r\n\r\nHuman: a\r\n\r\nAssistant: b c",
            "\r\n\r\nHuman: a\r\n\r\nAssistant: b d",
            "\r\n\r\nHuman: a\r\n\r\nAssistant:",
            (" b c", " b d"),
        ),
        # no marker: before the space and the word in which they part
        ("Q: Hi? A: Sure it is", "Q: Hi? A: Sorry", "Q: Hi? A:", (" Sure it is", " Sorry")),
        ("Desk:\nYes", "Desk:\nNo", "Desk:", ("\nYes", "\nNo")),
        # written without spaces: before the character, though no white space is near
        ("问：好吗？答：今天好", "问：好吗？答：今天不", "问：好吗？答：今天", ("好", "不")),
        ("请写一首诗春天来了", "请写一首诗我不会", "请写一首诗", ("春天来了", "我不会")),
        ("すしをカッター", "すしをカット", "すしをカッ", ("ター", "ト")),
        ("ขอบคุณครับ", "ขอบคุณค่ะ", "ขอบคุณ", ("ครับ", "ค่ะ")),
        ("请说 hello", "请说 help", "请说", (" hello", " help")),
        ("请说hello。", "请说help。", "请说", ("hello。", "help。")),
        ("Tell me: 春天", "Tell me: 春雨", "Tell me: 春", ("天", "雨")),
        ("안녕 감사합니다", "안녕 감사해요", "안녕", (" 감사합니다", " 감사해요")),  # spaced
        # marks stay with the character they are on, and in the word
        ("A: cafe\u0301", "A: cafe\u0300", "A:", (" cafe\u0301", " cafe\u0300")),
        ("はか\u3099", "はか", "は", ("か\u3099", "か")),
        ("はか\u3099い", "はか\u3099う", "はか\u3099", ("い", "う")),
        ("नमस्ते", "नमस्कार", "", ("नमस्ते", "नमस्कार")),
        ("Yes", "No", "", ("Yes", "No")),
    ],
)
def test_where_two_texts_part(
    chosen: str, rejected: str, prompt: str, rests: tuple[str, str] | None
) -> None:
    found, (one, other) = part_texts(chosen, rejected)
    assert found == prompt
    assert (found + one, found + other) == (chosen, rejected)
    if rests is not None:
        assert (one, other) == rests


def rows_of(form: str) -> list[dict[str, Any]]:
    """The same conversations with and without a column for the prompt, and as lists of turns."""
    pairs = [(f"Room {i}，请？", f"Of course, {i}.", f"不行 {i}") for i in range(40)]
    rows: list[dict[str, Any]] = []
    for ask, yes, no in pairs:
        prompt = f"\n\nHuman: Hi {ask}\n\nAssistant: Yes?\n\nHuman: {ask}\n\nAssistant:"
        if form == "prompt":
            rows.append({"prompt": prompt, "chosen": f" {yes}", "rejected": f" {no}"})
        elif form == "whole":
            rows.append({"chosen": f"{prompt} {yes}", "rejected": f"{prompt} {no}"})
        else:
            begin = turns(f"Hi {ask}", "Yes?", ask)
            end = [[*begin, {"role": "assistant", "content": reply}] for reply in (yes, no)]
            rows.append({"chosen": end[0], "rejected": end[1]})
    return rows


def made_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the rows as they were read, which differ with the form."""
    return [{name: row[name] for name in row if name != "row"} for row in rows]


@pytest.mark.parametrize("template", [CHAT, ROLES], ids=["chat", "roles"])
def test_three_forms_one_result(tmp_path: Path, template: Any) -> None:
    """Prompt and replies, whole transcripts and lists of turns are the same rows in every stage,
    prompts are prefixes (invariant 25), and the first user turn decides the split."""
    for build in STAGES:
        found = []
        for form in ("prompt", "whole", "turns"):
            path = write_jsonl(tmp_path / f"{form}.jsonl", rows_of(form))
            source = {"transcripts": form != "turns"}
            made = config(path, template, test_fraction=0.3, source=source)
            data = build(made, chat_like())
            found.append((made_of(data.train), made_of(data.test)))
            assert data.report.train.dropped == {}
        assert found[0] == found[1] == found[2]
        keys = [f"Hi Room {i}，请？" for i in range(40)]
        assert len(found[0][1]) == sum(held_out(key, 0.3) for key in keys) > 3
    made = config(path, template)
    prompts, pairs, shown = (build(made, chat_like()).train for build in reversed(STAGES))
    for prompt, pair, demonstration in zip(prompts, pairs, shown, strict=True):
        n = len(prompt["input_ids"])
        assert demonstration["input_ids"][:n] == prompt["input_ids"] == pair["chosen_ids"][:n]
        assert "Human:" not in prompt["prompt"]
        assert prompt["prompt"].count("Room") == 2


def test_verbatim_pairs_part_at_the_marker(tmp_path: Path) -> None:
    """template.kind none: nothing is taken apart; both forms give the same ids."""
    found = []
    for form in ("prompt", "whole"):
        path = write_jsonl(tmp_path / f"{form}.jsonl", rows_of(form))
        stages = [build(config(path, NONE), gpt2_like()) for build in STAGES]
        found.append([made_of(data.train) for data in stages])
    assert found[0] == found[1]
    first = found[0][2][0]["prompt"]
    assert first == rows_of("prompt")[0]["prompt"]
    text = gpt2_like().decode(found[0][1][0]["chosen_ids"])
    assert text == rows_of("whole")[0]["chosen"] + "<|endoftext|>"


def test_verbatim_pairs_without_spaces(tmp_path: Path) -> None:
    """No row is lost for a prompt that holds no white space."""
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"chosen": "请写一首诗春天来了", "rejected": "请写一首诗我不会"}]
    )
    data = preference_data(config(path, NONE), gpt2_like())
    assert data.report.train.dropped == {}
    (row,) = data.train
    assert gpt2_like().decode(row["chosen_ids"][: row["prompt_length"]]) == "请写一首诗"


def test_what_is_dropped_and_why(tmp_path: Path) -> None:
    rows = [
        {"prompt": ASK, "chosen": " A", "rejected": " B"},
        {"prompt": "Hi", "chosen": " A", "rejected": " B"},
        {"prompt": "\n\nAssistant: Hi\n\nHuman: \n\nAssistant:", "chosen": " A", "rejected": " B"},
        {"prompt": ASK, "chosen": " A\n\nHuman: B", "rejected": " B"},
        {"prompt": ASK, "chosen": " A", "rejected": " "},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    made = config(path, CHAT, source={"transcripts": True})
    report = preference_data(made, chat_like()).report
    assert report.train.dropped == {
        'no turn "Human:" or "Assistant:"': 1,
        "empty prompt": 1,
        "further turns in a reply": 1,
        "empty reply": 1,
    }
    assert report.train.used == 1
    rows = [
        {"chosen": ASK + " A", "rejected": ASK + " B"},
        {"chosen": ASK + " A\n\nHuman: x", "rejected": ASK + " B"},
        {"chosen": LONG + " A", "rejected": LONG.replace("Yes?", "No?") + " B"},
        {"chosen": ASK + " A", "rejected": LONG + " B"},
        {"chosen": ASK + " A", "rejected": ASK + " A"},
        {"chosen": "A", "rejected": ASK + " B"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    report = preference_data(config(path, CHAT, source={"transcripts": True}), chat_like()).report
    assert report.train.dropped == {
        "chosen and rejected do not differ in one last reply": 3,
        "chosen equals rejected": 1,
        'no turn "Human:" or "Assistant:"': 1,
    }


def test_texts_that_are_transcripts(tmp_path: Path) -> None:
    """A column text with transcripts is a conversation, under the template."""
    text = LONG + " 好的"
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text}, {"text": text + "\n\nHuman: bye"}])
    made = config(path, CHAT, source={"transcripts": True})
    data = sft_data(made, chat_like())
    assert data.train[0] == data.train[1]
    text = chat_like().decode(data.train[0]["input_ids"])
    assert text == chat_like().apply_chat_template(parse(LONG + " 好的"), tokenize=False)
    assert data.report.train.trimmed == 1
    prompt = prompt_data(made, chat_like()).train[0]
    assert text.startswith(prompt["prompt"])
    assert prompt["prompt"].endswith("A towel，请。<|im_end|>\n<|im_start|>assistant\n")
