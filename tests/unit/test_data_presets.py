"""Presets of `format`: what each makes of rows of its form, in every stage."""

import re
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, config, write_jsonl
from _tokenizers import chat_like

from cores.data import preference_data, prompt_data, sft_data
from cores.data.presets import PRESETS

Made = dict[str, list[str]]


def talk(ids: list[int]) -> str:
    """The turns of a row under the chat template, "question/reply"."""
    text = re.sub(r"<\|im_start\|>\w+\n", "", chat_like().decode(ids))
    return "/".join(text.replace("<|im_end|>", "\n").split("\n")).replace("//", "/").rstrip("/")


def made(path: str, preset: str | None) -> Made:
    """Of one file the demonstrations, the pairs ("prompt/chosen > rejected + margin"), and the
    prompts."""
    built, tokenizer = config(path, CHAT, source={"format": preset}), chat_like()
    pairs = []
    for row in preference_data(built, tokenizer).train:
        rejected = talk(row["rejected_ids"][row["prompt_length"] :])
        margin = f" + {row['margin']:g}" if row["margin"] else ""
        pairs.append(f"{talk(row['chosen_ids'])} > {rejected}{margin}")
    return {
        "sft": [talk(row["input_ids"]) for row in sft_data(built, tokenizer).train],
        "reward": pairs,
        "ppo": [talk(row["input_ids"]) for row in prompt_data(built, tokenizer).train],
    }


def says(speaker: str, text: str) -> dict[str, str]:
    return {"role": speaker, "content": text}


def replies(*texts: str) -> dict[str, list[dict[str, str]]]:
    """Both sides of a pair as whole conversations that ask for tea."""
    asked = says("user", "Tea?")
    sides = zip(("chosen", "rejected"), texts, strict=True)
    return {side: [asked, says("assistant", text)] for side, text in sides}


def message(text: str, rank: int | None = None, *further: Any, **more: Any) -> dict[str, Any]:
    speaker = "prompter" if text.endswith("?") else "assistant"
    return {"text": text, "role": speaker, "rank": rank, "replies": list(further)} | more


TREE = message(
    "Tea?",
    None,
    message("None", 2),
    message("Green", 0, message("Hot?", None, message("Yes", 0), message("No", 1))),
    message("Black", 1, message("Milk?", None)),
    message("Rude", 3, deleted=True),
)
FLAT = [
    ("1", None, "Tea?", None), ("2", "1", "None", 2), ("3", "1", "Green", 0),
    ("4", "1", "Black", 1), ("5", "3", "Hot?", None), ("6", "5", "Yes", 0), ("7", "5", "No", 1),
    ("8", "4", "Milk?", None), ("9", "1", "Rude", 3),
]  # fmt: skip
OASST = {
    "sft": ["Tea?/Green/Hot?/Yes"],
    "reward": [
        "Tea?/Green > None",
        "Tea?/Black > None",
        "Tea?/Green > Black",
        "Tea?/Green/Hot?/Yes > No",
    ],
    "ppo": ["Tea?", "Tea?/Green/Hot?", "Tea?/Black/Milk?"],
}
CASES: list[tuple[str, list[dict[str, Any]], Made]] = [
    (
        "helpsteer2",
        [
            {"prompt": "有茶吗？", "response": "没有。", "helpfulness": 1, "verbosity": 0},
            {"prompt": "有茶吗？", "response": "有，请坐。", "helpfulness": 4, "verbosity": 2},
            {"prompt": "A?", "response": "B", "helpfulness": 3, "verbosity": 1},
            {"prompt": "A?", "response": "C", "helpfulness": 3, "verbosity": 1},
            {"prompt": "D?", "response": "E", "helpfulness": 2, "verbosity": 1},
        ],
        {
            "sft": ["有茶吗？/有，请坐。", "A?/B", "A?/C", "D?/E"],
            "reward": ["有茶吗？/有，请坐。 > 没有。 + 3"],
            "ppo": ["有茶吗？", "A?", "D?"],
        },
    ),
    (
        "helpsteer2",
        [
            {"prompt": "A?", "response_1": "B", "response_2": "C", "preference_strength": -2},
            {"prompt": "A?", "response_1": "D", "response_2": "E", "preference_strength": 1},
            {"prompt": "A?", "response_1": "F", "response_2": "G", "preference_strength": 0},
            {
                "prompt": "H?\n<extra_id_1>Assistant\nI\n<extra_id_1>User\nJ?",
                "response_1": "K", "response_2": "L", "preference_strength": 3,
            },
        ],
        {
            "sft": ["A?/B", "A?/E", "A?/F", "A?/G", "H?/I/J?/L"],
            "reward": ["A?/B > C + 2", "A?/E > D + 1", "H?/I/J?/L > K + 3"],
            "ppo": ["A?", "A?", "A?", "H?/I/J?"],
        },
    ),
    (
        "ultrafeedback",
        [
            {
                "instruction": "A?",
                "completions": [
                    {"response": text, "overall_score": score, "fine-grained_score": 1.0}
                    for text, score in (("B", 4.5), ("C", 9.0), ("D", 4.5), ("E", None))
                ],
            }
        ],
        {"sft": ["A?/C"], "reward": ["A?/C > B", "A?/C > D"], "ppo": ["A?"]},
    ),
    (
        "ultrafeedback",
        [{"prompt": "Tea?", **replies("B", "C"), "score_chosen": 8.0, "score_rejected": 2.5}],
        {"sft": ["Tea?/B"], "reward": ["Tea?/B > C"], "ppo": ["Tea?"]},
    ),
    (
        "nectar",
        [
            {
                "prompt": "\n\nHuman: A?\n\nAssistant: B\n\nHuman: C?\n\nAssistant: ",
                "answers": [{"answer": text, "rank": rank} for text, rank in (("E", 2), ("D", 1))],
            }
        ],
        {"sft": ["A?/B/C?/D"], "reward": ["A?/B/C?/D > E"], "ppo": ["A?/B/C?"]},
    ),
    (
        "shp",
        [
            {"history": "A?", "human_ref_A": "B", "human_ref_B": "C", "labels": 1},
            {"history": "A?", "human_ref_A": "D", "human_ref_B": "E", "labels": 0},
        ],
        {"sft": ["A?/B", "A?/E"], "reward": ["A?/B > C", "A?/E > D"], "ppo": ["A?", "A?"]},
    ),
    *(
        (
            name,
            [{"prompt": "A?", "response_0": "B", "response_1": "C", **ids}],
            {"sft": [f"A?/{one}"], "reward": [f"A?/{one} > {other}"], "ppo": ["A?"]},
        )
        for ids in [{"better_response_id": 1, "safer_response_id": 0}]
        for name, one, other in (("pku_saferlhf", "C", "B"), ("pku_saferlhf_safety", "B", "C"))
    ),
    (
        "webgpt",
        [
            {"question": {"full_text": "A?", "id": "x"}, "answer_0": "B", "answer_1": "C"} | scores
            for scores in ({"score_0": -0.5, "score_1": 0.5}, {"score_0": 0.0, "score_1": 0.0})
        ],
        {"sft": ["A?/C", "A?/B", "A?/C"], "reward": ["A?/C > B"], "ppo": ["A?", "A?"]},
    ),
    ("oasst", [{"message_tree_id": "1", "prompt": TREE}], OASST),
    (
        "oasst",
        [
            message(text, rank, message_id=name, parent_id=parent, deleted=text == "Rude")
            | {"replies": None}
            for name, parent, text, rank in FLAT
        ],
        OASST,
    ),
    (
        "kto",
        [
            {"prompt": "A?", "completion": "B", "label": False},
            {"prompt": "C?", "completion": "D", "label": True},
            {"prompt": "A?", "completion": "E", "label": True},
            {"prompt": "F?", "completion": "G", "label": False},
        ],
        {"sft": ["A?/E", "C?/D"], "reward": ["A?/E > B"], "ppo": ["A?", "C?", "F?"]},
    ),
    (
        "kto",
        [
            {"messages": [says("user", "A?"), says("assistant", "B")], "label": True},
            {"messages": [says("user", "A?"), says("assistant", "C")], "label": False},
        ],
        {"sft": ["A?/B"], "reward": ["A?/B > C"], "ppo": ["A?"]},
    ),
    (
        "kto",
        [
            {"instruction": "A", "input": "now?", "output": "B", "kto_tag": True, "system": "S"},
            {"instruction": "A", "input": "now?", "output": "C", "kto_tag": False, "system": "S"},
            {"instruction": "A", "input": "now?", "output": "D", "kto_tag": False, "system": "T"},
        ],
        {"sft": ["S/A/now?/B"], "reward": ["S/A/now?/B > C"], "ppo": ["S/A/now?", "T/A/now?"]},
    ),
    (
        "openai_preference",
        [
            {
                "input": {"messages": [says("system", "S"), says("user", "A?")], "tools": []},
                "preferred_output": [says("assistant", "B")],
                "non_preferred_output": [says("assistant", "C")],
            }
        ],
        {"sft": ["S/A?/B"], "reward": ["S/A?/B > C"], "ppo": ["S/A?"]},
    ),
    (
        "argilla",
        [
            {**replies("B", "C"), "chosen_rating": 5.0, "rejected_rating": 3.0},
            {**replies("D", "E"), "chosen_rating": 4.0, "rejected_rating": 4.0},
            {**replies("F", "G"), "chosen_rating": 1.0, "rejected_rating": 4.0},
        ],
        {
            "sft": ["Tea?/B", "Tea?/D", "Tea?/E"],
            "reward": ["Tea?/B > C"],
            "ppo": ["Tea?", "Tea?"],
        },
    ),
    (
        "argilla",
        [
            {"prompt": "A?", "chosen": "B", "rejected": "C", "chosen-rating": 5}
            | {"rejected-rating": 2}
        ],
        {"sft": ["A?/B"], "reward": ["A?/B > C"], "ppo": ["A?"]},
    ),
    (
        "label_studio",
        [
            {
                "data": {"prompt": "A?", "answer1": "B", "answer2": "C"},
                "annotations": [
                    {"result": [{"type": "pairwise", "value": {"selected": side}}]}
                    | {"was_cancelled": skipped}
                    for side, skipped in votes
                ],
            }
            for votes in (
                [("right", False), ("left", True), ("left", True)],
                [("left", False), ("right", False)],
                [],
            )
        ],
        {"sft": ["A?/C", "A?/B", "A?/C"], "reward": ["A?/C > B"], "ppo": ["A?", "A?", "A?"]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "rows", "expected"), CASES)
def test_each_stage(tmp_path: Path, preset: str, rows: list[Any], expected: Made) -> None:
    assert made(write_jsonl(tmp_path / "a.jsonl", rows), preset) == expected


def test_every_preset_is_tried() -> None:
    assert {case[0] for case in CASES} | {"summarize"} == set(PRESETS)
