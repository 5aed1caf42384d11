"""Evaluations between updates, and the policy that is kept for the best of them."""

from pathlib import Path

import pytest
import torch
from _helpers import good, in_process, record, rows
from _resume import metrics, until
from safetensors.torch import load_file
from test_resume import PPO, workplace


def run(root: Path, parents: Path, llama: Path, files: dict[str, Path], *more: str) -> Path:
    """The stage's folder, after four updates at a high rate."""
    out = workplace(root, parents)
    in_process("ppo", [*good(llama, files, out), *PPO, *more])
    return out / "ppo"


def test_the_best_policy_under_the_limit_is_kept(
    tmp_path: Path, parents: Path, llama: Path, files: dict[str, Path]
) -> None:
    """Looked at between updates, training is the same; `best` is the best row whose KL the limit
    allows, and its weights are those of that update."""
    words = ["--ppo.eval_every", "1", "--ppo.keep_best", "1000", "--checkpoint.keep_weights", "1"]
    plain = run(tmp_path / "plain", parents, llama, files)
    looked = run(tmp_path / "looked", parents, llama, files, *words)
    assert metrics(plain) == metrics(looked)
    found = rows(looked / "evaluations.jsonl")
    assert [row["update"] for row in found] == [1, 2, 3]
    best = max(found, key=lambda row: row["score"])
    assert record(looked)["metrics"]["best"] == best
    kept, then = (
        load_file(looked / "weights" / name / "model.safetensors")
        for name in ("best", f"step-{best['update']}")
    )
    assert all(torch.equal(kept[name], then[name]) for name in then)
    middle = sorted(row["kl"] for row in found)[1]
    near = run(tmp_path / "near", parents, llama, files, *words[:3], str(middle))
    allowed = [row for row in found if row["kl"] <= middle]
    assert record(near)["metrics"]["best"] == max(allowed, key=lambda row: row["score"])


def test_an_evaluation_that_fails_costs_nothing(
    tmp_path: Path, parents: Path, llama: Path, files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The one behind the last update: the stage is published without it, and a line says so."""
    from cores.training import ppo

    real, calls = ppo.evaluate, []

    def failing(*args: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return real(*args)

    monkeypatch.setattr(ppo, "evaluate", failing)
    stage = run(tmp_path / "out", parents, llama, files)
    facts = record(stage)["metrics"]
    assert facts["before"]["prompts"] == 4
    assert facts["after"] is None
    assert "note: the evaluation failed and is left out:" in capsys.readouterr().out


RULE = """\
def size(prompts, responses, rows):
    return [None] + [float(len(text)) for text in responses[1:]]
def mute(prompts, responses, rows):
    return [None] * len(rows)
"""


def test_every_source_is_told_apart(
    tmp_path: Path, parents: Path, llama: Path, files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also one that weighs nothing: of the replies that it spoke of, and after a run went on."""
    rule = tmp_path / "rule_apart.py"
    rule.write_text(RULE, encoding="utf-8")
    rewards = f'{{"model": 1.0, "{rule}:size": 0, "{rule}:mute": 0}}'
    words = ["--ppo.rewards", rewards, "--ppo.eval_every", "1"]
    facts = record(run(tmp_path / "out", parents, llama, files, *words))["metrics"]
    looks = rows(tmp_path / "out" / "ppo" / "evaluations.jsonl")
    for found in (facts["before"], *looks, facts["after"]):
        assert found["score_model"] == found["score"]
        assert found["score_size"] > 0
        assert "score_mute" not in found
    out = workplace(tmp_path / "again", parents)
    until(monkeypatch, "ppo", [*good(llama, files, out), *PPO, *words], 2)
    in_process("ppo", [*good(llama, files, out), *PPO, *words])
    again = record(out / "ppo")["metrics"]
    assert (again["before"], again["after"]) == (facts["before"], facts["after"])
