"""Losses of several sources, added by weights in every step of stage 1."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _config_helpers import mistake
from _data_helpers import NONE, config, write_jsonl
from _models import PAD, policy_of
from _stages import begun
from _tokenizers import gpt2_like
from _training import gradient_descent, sft_rows, training_config

from cores.config.data import SourceSection, WeightedSource
from cores.data import sft_data
from cores.training.sft import collate, train_sft

WEIGHTS = [0.2, 1.0]


def weighted(folder: Path, micro: int, weights: list[float] = WEIGHTS) -> Any:
    items = [WeightedSource(path="a", loss_weight=weight) for weight in weights]
    made = training_config(folder, micro)
    data = replace(made.data, sft=SourceSection(sources=items))
    return replace(made, data=data, sft=replace(made.sft, max_steps=1))


def rows() -> list[dict[str, Any]]:
    """One batch: five rows of the first source, three of the second."""
    return [{**row, "part": int(i > 4)} for i, row in enumerate(sft_rows(8))]


def by_hand(weights: list[float]) -> tuple[float, float]:
    """Loss and norm of its gradient: each source's mean over its tokens, times its weight."""
    model, total = policy_of("gpt2").eval(), torch.zeros(())
    for part, weight in enumerate(weights):
        batch = collate([row for row in rows() if row["part"] == part], PAD)
        labels, _ = batch.pop("labels"), batch.pop("part")
        logits = model(**batch).logits[:, :-1].log_softmax(-1)
        flags = labels[:, 1:] != -100
        told = logits.gather(-1, labels[:, 1:, None].clamp(min=0)).squeeze(-1)
        total = total - weight * told[flags].sum() / flags.sum()
    total.backward()
    slopes = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return total.item(), torch.stack(slopes).norm().item()


@pytest.mark.parametrize("weights", [WEIGHTS, [3.0, 0.5]])
@pytest.mark.parametrize("micro", [1, 4, 8])
def test_a_step_adds_the_means_of_its_sources(
    weights: list[float], micro: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient are those by hand, in micro-batches of any size, though some hold rows of
    one source alone."""
    gradient_descent(monkeypatch)
    run = begun(weighted(tmp_path, micro, weights))
    with run:
        train_sft(policy_of("gpt2"), rows(), run)
        (line,) = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    loss, norm = by_hand(weights)
    found = json.loads(line)
    assert found["loss"] == pytest.approx(loss, rel=1e-3)
    assert found["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_rows_know_their_source(tmp_path: Path) -> None:
    """Where losses are weighed, and nowhere else; held-out rows are judged by one mean."""
    files = [
        write_jsonl(tmp_path / "a.jsonl", [{"text": "aaa"}] * 2),
        write_jsonl(tmp_path / "b.jsonl", [{"text": "bbb"}] * 4),
    ]
    for weights, parts in (((0.2, 1.0), {"aaa": 0, "bbb": 1}), ((None, None), {"aaa": None})):
        items = [
            WeightedSource(path=file, loss_weight=weight, weight=i + 1)
            for i, (file, weight) in enumerate(zip(files, weights, strict=True))
        ]
        made = config(None, NONE, source={"sources": items})
        for row in sft_data(made, gpt2_like()).train:
            text = gpt2_like().decode(row["input_ids"][:-1])
            assert row.get("part") == parts.get(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["[{path: a, loss_weight: 2}, {path: b}]"], "[0].loss_weight: is not given for all"),
        (["[{path: a, loss_weight: 2}]", "--sft.packing", "true"], "sft.packing: takes rows of"),
        (["[{path: a, loss_weight: 2}]", "--ppo.ptx_coef", "1"], "ppo.ptx_coef: takes rows of"),
        (["[{path: a, loss_weight: 0}]"], "loss_weight: 0.0 must be above 0"),
    ],
)
def test_what_does_not_go_together(words: list[str], said: str) -> None:
    """By its key."""
    assert said in mistake("--data.sft.sources", *words)
