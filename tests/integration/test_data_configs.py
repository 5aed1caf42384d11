"""Every file under configs/ with files of the columns it was written for, made here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _helpers import FEW_STEPS, ROOT, record
from _tokenizers import chat_like, gpt2_like

from cores.config import Config, parse_config
from cores.data import MixtureReport, preference_data, prompt_data, sft_data

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
ROWS = 40
ASK, YES, NO = "please bring a towel to room {}", "yes of course I will", "no never"


def row_of(name: str, i: int) -> dict[str, Any]:
    """A row with the columns of the file or hub set `name`."""
    ask = ASK.format(i % 100)
    turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": YES}]
    task = {"instruction": ask, "input": "now" * (i % 2), "output": YES}
    talk = f"\n\nHuman: {ask}\n\nAssistant: yes\n\nHuman: {ask} now\n\nAssistant:"
    reply = {"chosen": f" {YES}", "rejected": f" {NO}"}
    rows: dict[str, dict[str, Any]] = {
        "data/polite_pref_train.jsonl": {**task, "chosen": YES, "rejected": NO},
        "data/hh_harmless_train.jsonl": {"prompt": talk, **reply},
        "data/oasst_pref_train.jsonl": {"messages": turns[:1], "chosen": YES, "rejected": NO},
        "data/oasst_sft_train.jsonl": {"messages": turns},
        "data/seed_tasks_sft.jsonl": task,
        "data/rt_polarity_train.jsonl": {"text": f"{ask} at once . {YES}", "label": i % 2},
        "data/prompts_oasst_lottery.jsonl": {"prompt": ask},
        "data/prompts_awesome.jsonl": {"act": "a lamp", "prompt": ask},
        "yahma/alpaca-cleaned": task,
        "Dahoas/rm-static": {"prompt": talk, "response": " yes", **reply},
        "Dahoas/synthetic-instruct-gptj-pairwise": {"prompt": ask, "chosen": YES, "rejected": NO},
        "runs/demo/data/sft.jsonl": {"prompt": ask, "completion": YES},
        "runs/demo/data/preference.jsonl": {"prompt": ask, "chosen": YES, "rejected": NO},
        "runs/demo/data/prompts.jsonl": {"prompt": ask},
        "runs/arithmetic/data/sft.jsonl": {"prompt": f"{i}+1=", "completion": f"{i + 1}"},
        "runs/arithmetic/data/prompts.jsonl": {"prompt": f"{i}+1=", "answer": f"{i + 1}"},
    }
    return rows[name.replace("_test.jsonl", ".jsonl")]


def local(name: str) -> str:
    """Where the rows of `name` are written: a hub set has a file in its place."""
    return name if name.endswith(".jsonl") else f"{name}.jsonl"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_files(config: Config) -> Config:
    """The configuration with all its sources written to the current folder."""

    def placed(source: Any) -> Any:
        changes: dict[str, Any] = {}
        for key in ("path", "test_path"):
            if name := getattr(source, key):
                changes[key] = local(name)
                Path(changes[key]).parent.mkdir(parents=True, exist_ok=True)
                lines = [json.dumps(row_of(name, i)) + "\n" for i in range(ROWS)]
                Path(changes[key]).write_text("".join(lines), encoding="utf-8")
        if not (source.path or "x").endswith(".jsonl"):
            changes["test_split"] = None  # hub sets alone have splits
        return replace(source, **changes)

    data = config.data
    for stage in ("sft", "preference", "prompts"):
        section = placed(getattr(data, stage))
        section = replace(section, sources=[placed(source) for source in section.sources])
        data = replace(data, **{stage: section})
    return replace(config, data=data)


@pytest.mark.parametrize("name", CONFIGS)
def test_data_of_every_configuration(here: Path, name: str) -> None:
    """No row is lost, prompts begin the rows of the other stages, every share is its weight's."""
    config = with_files(parse_config(["--config", str(ROOT / "configs" / f"{name}.yaml")], "", ""))
    tokenizer = chat_like() if config.template.kind == "chat" else gpt2_like()
    longer = {"ppo": replace(config.ppo, max_prompt_length=512)}
    config = replace(config, **longer)  # letters take more tokens in a tiny vocabulary
    prompts = prompt_data(config, tokenizer)
    found = [sft_data(config, tokenizer), prompts]
    if name not in ("sentiment", "arithmetic"):  # no pairs
        found.append(preference_data(config, tokenizer))
    for data in found:
        reports = data.report.sources if isinstance(data.report, MixtureReport) else [data.report]
        for report in reports:
            assert not report.train.dropped
            assert report.test is not None
        if isinstance(data.report, MixtureReport):
            total = sum(data.report.counts)
            assert [count / total for count in data.report.counts] == pytest.approx(
                [w / sum(data.report.weights) for w in data.report.weights], abs=1 / total
            )
        assert data.train
        assert data.test
    if name == "sentiment":
        rows = [row["input_ids"] for row in found[0].train]
        assert all(
            any(r[: len(p)] == p for r in rows) for p in (x["input_ids"] for x in prompts.train)
        )
        assert {len(row["input_ids"]) for row in prompts.train} == {
            config.data.prompts.prompt_tokens
        }
    if name in ("hh_harmless", "mixture"):
        assert not any("Human:" in row["prompt"] for row in prompts.train)


def words(config: str, model: Path, out: Path) -> list[str]:
    """A short run of a configuration on a tiny model."""
    given = ["--config", str(ROOT / "configs" / f"{config}.yaml"), *FEW_STEPS]
    given += ["--model.path", str(model), "--model.pad_token", "null", "--output_dir", str(out)]
    return [*given, "--model.precision", "fp32", "--ppo.max_prompt_length", "64"]


def test_a_mixture_through_all_stages(here: Path, llama: Path, call: Any, monkeypatch: Any) -> None:
    """configs/mixture.yaml as it stands: an entry a source in stage.json, shares by weight."""
    monkeypatch.chdir(here)
    with_files(parse_config(["--config", str(ROOT / "configs" / "mixture.yaml")], "", ""))
    for stage in ("sft", "reward", "ppo"):
        status, printed, err = call(stage, words("mixture", llama, here / "run"))
        assert status == 0, err
        assert printed.count("; weight ") == 3
        entries = record(here / "run" / stage)["data"]["sources"]
        assert [entry["weight"] for entry in entries] == [2.0, 1.0, 1.0]
        assert entries[0]["share"] == pytest.approx(0.5, abs=0.02)
        assert sum(entry["rows"] for entry in entries) == sum(e["train"]["used"] for e in entries)


def test_texts_through_all_stages(here: Path, gpt2: Path, call: Any, monkeypatch: Any) -> None:
    """configs/sentiment.yaml, its texts streamed in stage 1; pairs of one's own with margins."""
    monkeypatch.chdir(here)
    with_files(parse_config(["--config", str(ROOT / "configs" / "sentiment.yaml")], "", ""))
    pairs = [
        {
            "prompt": f"please {i}",
            "chosen": " 好的。 yes",
            "rejected": " no",
            "margin": 1.0 * (i % 2),
        }
        for i in range(30)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    given = [*words("sentiment", gpt2, here / "run"), "--data.preference.path", "pairs.jsonl"]
    given += ["--data.sft.streaming", "true"]
    for stage in ("sft", "reward", "ppo"):
        status, printed, err = call(stage, given)
        assert status == 0, err
        if stage == "sft":
            assert "streamed while training" in printed
            facts = record(here / "run" / "sft")["data"]["train"]
            assert facts["used"] >= 24, "three steps of eight rows"
            assert facts["read"] == facts["used"]
    prompts = [
        json.loads(line) for line in (here / "run/ppo/samples.jsonl").read_text().splitlines()
    ]
    assert all(row["prompt"].startswith("please") for row in prompts)
    assert not any("\ufffd" in row["reply"][-1:] for row in prompts)
