"""What the terminal says of the counts."""

import json
from pathlib import Path

from _data_helpers import config, write_jsonl
from _tokenizers import gpt2_like
from test_data_build import pairs

from cores.data import preference_data
from cores.data.report import DataReport, SplitReport


def test_an_empty_held_out_split_is_said() -> None:
    """Else its figures would only be missing."""
    train, empty = SplitReport("a", {}, "text", 5, 5), SplitReport("a", {}, "text")
    assert DataReport(train, empty).lines()[-1].startswith("note: no row is held out")
    assert not any("note" in line for line in DataReport(train, None).lines())
    assert not any("note" in line for line in DataReport(train, train).lines())


def test_the_report(tmp_path: Path) -> None:
    rows = [*pairs(30), {"prompt": "Q", "chosen": "", "rejected": "B"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = preference_data(config(path, test_fraction=0.2), gpt2_like())
    found = json.loads(json.dumps(data.report.to_json()))
    assert found["train"]["read"] + found["test"]["read"] == 31
    assert found["train"]["fingerprints"] == found["test"]["fingerprints"]
    assert len(found["train"]["fingerprints"]["a.jsonl"]) == 64
    train, test = data.report.lines()
    assert train.startswith(f"train: {len(data.train)} of {found['train']['read']} rows of {path}")
    assert test.startswith("test: ")
    assert ("1 empty reply" in train) != ("1 empty reply" in test)
