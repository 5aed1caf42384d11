"""Rows as people have them, shown by the script of stage 1 as a user starts it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

ROLES = [
    "--template.kind", "roles", "--template.user.prefix", "U:", "--template.user.suffix", "|",
    "--template.assistant.prefix", "A:", "--template.assistant.suffix", "|",
    "--template.system.suffix", "|", "--template.separator", "+",
]  # fmt: skip
END = "<|endoftext|>"
PAIRS = [
    {"question": "几点开门？", "context": "", "answer": "九点。"},
    {"question": "问", "answer": "答"},
]
PAIRS[1]["context"] = "在城里"
ROUND = {
    "Human": "H: 二加三？\n",
    "Inner Thoughts": "T: 算一下\n",
    "Commands": "",
    "Tool Responses": "R: 五\n",
    "MOSS": "M: 五。\n",
}


@pytest.fixture
def shown(call, gpt2, tmp_path, monkeypatch):
    """What stage 1 shows of a file: trained text in brackets, rows one after the other."""
    monkeypatch.setenv("NO_COLOR", "1")

    def show(path: Path, *words: Any, columns: dict[str, str] | None = None) -> tuple[str, str]:
        out = ["--model.path", gpt2, "--output_dir", tmp_path / "out", "--data.inspect", "9"]
        source = ["--data.sft.path", path, "--data.sft.columns", json.dumps(columns or {})]
        status, printed, err = call("sft", [*out, *source, *(words or ROLES)])
        assert status == 0, err
        rows, _, rest = printed.partition("--- lengths")
        rows = rows.split("untrained\n", 1)[1]
        text = "".join(x for x in rows.splitlines(True) if not x.startswith("--- row"))
        return text, rest

    return show


def test_columns_of_other_names(shown, tmp_path) -> None:
    """A question with a context is an instruction with an input, joined by the template."""
    path = tmp_path / "行.json"
    path.write_text(json.dumps({"of": "desk", "rows": PAIRS}, ensure_ascii=False), "utf-8")
    names = {"prompt": "question", "reply": "answer"}
    text, rest = shown(path, columns={**names, "input": "context"})
    assert text == f"U:几点开门？|A:[九点。|{END}]\nU:问+在城里|A:[答|{END}]\n"
    assert "(instruction)" in rest
    text, rest = shown(path, columns=names)
    assert text == f"U:几点开门？|A:[九点。|{END}]\nU:问|A:[答|{END}]\n"
    assert "(completion); columns not read: context" in rest


def test_shapes_of_rows(shown, tmp_path) -> None:
    """Lists of questions and replies, rounds with history, turns in a dict."""
    path = tmp_path / "lists.jsonl"
    path.write_text(json.dumps({"input": ["甲", "乙"], "output": ["丙", "丁"]}), "utf-8")
    assert shown(path)[0] == f"U:甲|A:[丙|{END}]U:乙|A:[丁|{END}]\n"
    row = {"prompt": "乙", "response": "丁", "history": [["甲", "丙"]], "system": "S"}
    path.write_text(json.dumps(row), "utf-8")
    names = {"reply": "response"}
    assert shown(path, columns=names)[0] == f"S|U:甲|A:[丙|{END}]U:乙|A:[丁|{END}]\n"
    row = {"meta_instruction": "助手\n", "num_turns": 1, "chat": {"turn_1": ROUND}, "id": 3}
    path.write_text(json.dumps(row), "utf-8")
    text, rest = shown(path, "--template.kind", "none")
    assert text == f"助手\nH: 二加三？\nT: 算一下\nR: 五\n[M: 五。\n{END}]\n"
    assert "columns not read: id" in rest


def test_a_folder_of_packed_files(shown, tmp_path) -> None:
    """Tab-separated, of two splits."""
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        content = f"question\tanswer\n{split}\t是\n".encode()
        (folder / f"{split}-0.tsv.gz").write_bytes(gzip.compress(content))
    text, rest = shown(folder, columns={"prompt": "question", "reply": "answer"})
    assert text == f"U:train|A:[是|{END}]\n"
    assert f"train: 1 of 1 rows of {folder} (train) (completion)\n" in rest
    assert f"test: 1 of 1 rows of {folder} (test) (completion)\n" in rest


def test_a_text_file(shown, tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("== 标题 ==\n\n文。\n", "utf-8")
    assert shown(path)[0] == f"[== 标题 ==\n\n文。\n{END}]\n"
