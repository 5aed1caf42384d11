"""What is held out or asked in stage 3 and was trained on all the same is counted and said."""

from dataclasses import replace
from pathlib import Path

from _data_helpers import NONE, config, write_jsonl
from _tokenizers import gpt2_like

from cores.config.data import SourceSection
from cores.data import overlap, prompt_data, sft_data

ROWS = [{"prompt": f"question {n}", "completion": "reply"} for n in range(20)]


def test_held_out_rows_that_are_trained_on(tmp_path: Path) -> None:
    """By the first user turn, in a test file of the user's own."""
    path = write_jsonl(tmp_path / "train.jsonl", ROWS)
    held = write_jsonl(tmp_path / "test.jsonl", [*ROWS[3:5], {**ROWS[0], "prompt": "another"}])
    data = sft_data(config(path, NONE, source={"test_path": held}), gpt2_like())
    assert "with a first user turn that is trained on: 2" in "\n".join(data.report.lines())
    assert data.report.to_json()["test"]["trained_on"] == 2


def test_prompts_that_the_reward_model_has_seen(tmp_path: Path) -> None:
    """Those of stage 2's training pairs, not of its held-out ones; a split by the same hash has
    none among the held-out prompts."""
    pairs = [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(40)]
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"prompt": row["prompt"]} for row in ROWS])
    made = config(asked, NONE, test_fraction=0.4)
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    made = replace(made, data=replace(made.data, preference=SourceSection(path=path)))
    data = prompt_data(made, gpt2_like())
    assert overlap(made, data) == [
        f"asked in stage 2's training pairs too: {len(data.train)} of {len(data.train)} prompts"
    ]
    whole = replace(made, data=replace(made.data, test_fraction=0.0))
    assert f"{len(data.test)} of {len(data.test)} held-out prompts" in str(overlap(whole, data))
    other = write_jsonl(tmp_path / "other.jsonl", [{**row, "prompt": "no"} for row in pairs])
    apart = replace(made, data=replace(made.data, preference=SourceSection(path=other)))
    assert overlap(apart, data) == []
    torn = write_jsonl(tmp_path / "torn.jsonl", [{"prompt": 3, "chosen": "a", "rejected": "b"}])
    broken = replace(made, data=replace(made.data, preference=SourceSection(path=torn)))
    assert "were not compared with the prompts" in str(overlap(broken, data))
    elsewhere = replace(made, reward=replace(made.reward, path="model"))
    assert overlap(elsewhere, data) == []
