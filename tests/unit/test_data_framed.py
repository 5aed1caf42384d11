"""Rows that a template has written before: its frame would stand there twice."""

from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, NONE, ROLES, config, write_jsonl
from _tokenizers import chat_like, llama_like

from cores.config.schema import Config
from cores.data import preference_data, prompt_data, sft_data
from cores.data.report import SplitReport
from cores.errors import UserError

FRAMED = "User: A towel?\nAssistant:"
INST = "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + eos_token }}{% endfor %}"  # noqa: E501


def counted(cfg: Config, tokenizer: Any = None) -> SplitReport:
    """Of the rows of stage 1."""
    data: Any = sft_data(cfg, tokenizer or chat_like())
    report: SplitReport = data.report.train
    return report


def rows(asked: str, reply: str) -> list[dict[str, str]]:
    """One that says this, and one that is as it should be."""
    found = [(asked, reply), ("And soap?", "Yes.")]
    return [{"prompt": p, "completion": r, "chosen": r, "rejected": "No."} for p, r in found]


@pytest.mark.parametrize("build", [sft_data, preference_data, prompt_data])
@pytest.mark.parametrize("asked", [FRAMED, "User: A towel?", "A towel?\nAssistant:"])
def test_a_prompt_with_its_frame_is_left_out(build: Any, asked: str, tmp_path: Path) -> None:
    """Alpaca's and others' files hold it; here the model would read it twice."""
    path = write_jsonl(tmp_path / "a.jsonl", rows(asked, "Of course."))
    report = build(config(path, ROLES), chat_like()).report.train
    assert dict(report.dropped) == {"in the template's frame already": 1}
    assert not build(config(path, NONE), chat_like()).report.train.dropped, "verbatim it is right"


def test_chat_templates_without_control_tokens(tmp_path: Path) -> None:
    tokenizer = chat_like().__class__.from_pretrained(_saved(tmp_path))
    path = write_jsonl(tmp_path / "a.jsonl", rows("[INST] A towel? [/INST]", "Of course."))
    report = sft_data(config(path, CHAT), tokenizer).report.lines()[0]
    assert "1 of 2 rows" in report
    assert "dropped: 1 in the template's frame already" in report


def _saved(folder: Path) -> str:
    """A tokenizer of its own: the others are shared by all tests."""
    chat_like().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(INST, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("build", [sft_data, preference_data])
def test_a_reply_that_begins_with_its_speaker(build: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows("A towel?", "Assistant: Of course."))
    report = build(config(path, ROLES), chat_like()).report.train
    assert dict(report.dropped) == {"in the template's frame already": 1}


def test_what_only_looks_alike(tmp_path: Path) -> None:
    """Words within a message; a frame of one sign, or of letters, which messages end with too."""
    for asked, reply in (
        ("Who wrote 'Assistant:' here?", "The Assistant: nobody else."),
        ("Assistant: was that you?", "assistant: yes"),
    ):
        path = write_jsonl(tmp_path / "a.jsonl", rows(asked, reply))
        assert not counted(config(path, ROLES)).dropped
    for mark in ("?", "bot"):
        template = ROLES.__class__(kind="roles", assistant=ROLES.assistant.__class__(mark))
        path = write_jsonl(tmp_path / "a.jsonl", rows(f"Is it a {mark}", "both"))
        assert not counted(config(path, template)).dropped


def test_where_all_rows_are_so_the_error_says_what_to_do(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(FRAMED, "Of course.")[:1])
    with pytest.raises(
        UserError, match=r"frame already\).* set template.kind to none, or data.sft"
    ):
        sft_data(config(path, ROLES), chat_like())


@pytest.mark.parametrize("column", ["text", "completion"])
def test_verbatim_rows_with_their_own_ends(column: str, tmp_path: Path) -> None:
    """BOS and stop token stand once, as they are put anyway; the ids are those of the bare text."""
    asked, reply = "[INST] A towel? [/INST]", " Of course."
    found = []
    for before, behind in (("<s>", "</s>"), ("", "")):
        row = {"prompt": before + asked, "completion": reply + behind}
        row = {"text": before + asked + reply + behind} if column == "text" else row
        path = write_jsonl(tmp_path / "a.jsonl", [row])
        (made,) = sft_data(config(path, NONE), llama_like()).train
        found.append(made)
        (prompt,) = prompt_data(config(path, NONE), llama_like()).train
        assert made["input_ids"][: len(prompt["input_ids"])] == prompt["input_ids"]
        assert made["input_ids"].count(llama_like().bos_token_id) == 1
    assert found[0] == found[1]
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "<s>Hi<s>", "completion": "Ho"}])
    with pytest.raises(UserError, match="1 holds the control token <s>"):
        sft_data(config(path, NONE), llama_like())
