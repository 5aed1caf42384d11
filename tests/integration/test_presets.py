"""A preset through the command line."""

from pathlib import Path

import pytest
from _helpers import in_process
from _tiny import make_gpt2, write_jsonl

ASK = "please bring a towel to room 7"


def test_wanted_replies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """KTO's rows: what stage 1 takes and leaves out is said before anything is trained."""
    replies = [("yes", True), ("no", False), ("no never", False)]
    rows = [{"prompt": ASK, "completion": text, "label": wanted} for text, wanted in replies]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    words = [
        "--model.path", str(make_gpt2(tmp_path / "base")), "--output_dir", str(tmp_path / "out"),
        "--data.sft.path", str(tmp_path / "rows.jsonl"), "--data.sft.format", "kto",
        "--data.test_fraction", "0", "--template.kind", "none", "--data.inspect", "3",
    ]  # fmt: skip
    in_process("sft", words)
    told = " ".join(capsys.readouterr().out.split())
    assert "row 1:" in told
    assert "row 2:" not in told
    assert "(completion); rows read by kto: 3, replies taken: 1, worse replies left out: 2" in told
