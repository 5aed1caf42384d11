"""Reward models from ratings, heads of two layers, frozen bases."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _documented import documented
from _models import (
    KINDS,
    LAUNCH,
    LORA,
    PAD,
    classifier,
    largest_difference,
    parameters,
    sft_folder,
    toy_tokenizer,
)
from _stages import begun
from _training import gradient_descent, random_rows, training_config
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from cores.config import Config
from cores.data import right_pad
from cores.models import ScalarModel, load_scalar, save_model
from cores.models.actor import rescale
from cores.models.heads import expected_rating
from cores.training.reward import figures, judged, reward_model, score_rows, train_reward

ROWS = random_rows(8, seed=5)


def rated(count: int, bins: int = 3) -> list[dict[str, Any]]:
    rows = random_rows(count, seed=2)
    return [{"ids": ids, "prompt_length": 1, "score": 1.0 + i % bins} for i, ids in enumerate(rows)]


def config_of(folder: Path, micro: int = 8, **reward: Any) -> Any:
    made = training_config(folder, micro)
    return replace(made, reward=replace(made.reward, bins=3, **reward))


def fresh(folder: Path, family: str = "gpt2", **reward: Any) -> Any:
    return reward_model(config_of(folder, **reward), sft_folder(family), toy_tokenizer())


def trained(folder: Path, rows: list[dict[str, Any]], micro: int = 8, **reward: Any) -> Any:
    """A model behind two steps, and its first line of metrics."""
    config = config_of(folder, micro, **reward)
    run = begun(config, "reward")
    model = reward_model(config, sft_folder("gpt2"), toy_tokenizer())
    model = train_reward(model, rows, run)
    first, *_ = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return model, json.loads(first)


def test_the_expected_rating() -> None:
    """Odds of 1 : 1 : 2 are .25 + .5 + 1.5; of one that is certain it is that."""
    logits = torch.tensor([[0.0, 0.0, 2.0], [50.0, 0.0, 0.0]]).log_softmax(-1)
    logits[0] = torch.tensor([1.0, 1.0, 2.0]).log()
    assert expected_rating(logits).tolist() == pytest.approx([2.25, 1.0], abs=1e-5)


def test_the_loss_of_scores(tmp_path: Path) -> None:
    """The first step's is the mean squared error of the scores at the replies' ends."""
    model, rows = fresh(tmp_path, kind="pointwise"), rated(8)
    scores = score_rows(ScalarModel(model), [row["ids"] for row in rows], 8, LAUNCH)
    errors = [(s - row["score"]) ** 2 for s, row in zip(scores, rows, strict=True)]
    _, first = trained(tmp_path / "run", rows, kind="pointwise")
    assert first["loss"] == pytest.approx(sum(errors) / 8, rel=1e-4)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_loss_of_bins(layers: int, tmp_path: Path) -> None:
    """The first step's is the mean of -log p(rating), and bin_accuracy counts the likeliest."""
    options: dict[str, Any] = {"kind": "binned", "head_layers": layers}
    model, rows = fresh(tmp_path, **options), rated(8)
    ids, mask = right_pad([row["ids"] for row in rows], PAD)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask.long()).logits
    classes = torch.tensor([int(row["score"]) - 1 for row in rows])
    loss = -logits.log_softmax(-1)[torch.arange(8), classes].mean().item()
    _, first = trained(tmp_path / "run", rows, **options)
    assert logits.shape == (8, 3)
    assert first["loss"] == pytest.approx(loss, rel=1e-4)
    assert first["bin_accuracy"] == (logits.argmax(-1) == classes).float().mean().item()


def test_micro_batches_of_ratings_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 8 and one of 5 as micro-batches of 8 and 2."""
    gradient_descent(monkeypatch)
    one, other = (
        trained(tmp_path / str(micro), rated(13), micro, kind="binned") for micro in (8, 2)
    )
    assert largest_difference(parameters(one[0]), parameters(other[0])) < 1e-6
    assert one[1]["bin_accuracy"] == other[1]["bin_accuracy"]


def test_a_frozen_base(tmp_path: Path) -> None:
    """Nothing but the head moves."""
    options: dict[str, Any] = {"kind": "pointwise", "freeze_base": True, "head_layers": 2}
    start = parameters(fresh(tmp_path, **options))
    model, _ = trained(tmp_path / "run", rated(8), **options)
    moved = {n for n, p in parameters(model).items() if not torch.equal(p, start[n])}
    assert moved == {"score.0.weight", "score.0.bias", "score.2.weight"}


@pytest.mark.parametrize("family", KINDS)
def test_adapters_leave_both_layers_of_the_head(family: str, tmp_path: Path) -> None:
    """They are trained in full, as one layer is; saved and merged they give the same scores."""
    model = fresh(tmp_path, family, kind="binned", head_layers=2, lora=LORA)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    head = {name for name in names if "score" in name}
    assert len(head) == 3
    assert not any("lora" in name for name in head)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in names:
                weight.normal_(std=0.3)
        rescale(model.get_base_model(), 1.5, 0.5)
    scores = score_rows(ScalarModel(model), ROWS, 4, LAUNCH)
    for merge in (False, True):
        save_model(model, toy_tokenizer(), tmp_path / str(merge), merge)
        again = ScalarModel(load_scalar(tmp_path / str(merge)))
        assert score_rows(again, ROWS, 4, LAUNCH) == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("bins", [1, 3])
@pytest.mark.parametrize("layers", [1, 2])
def test_calibrated_heads_survive_saving(layers: int, bins: int, tmp_path: Path) -> None:
    """Scores are those before, less the mean, over the deviation, twice; a folder keeps them, and
    stock transformers reads it: one layer by its class, two by the lines of docs/models.md."""
    model = fresh(tmp_path, kind="binned" if bins > 1 else "pointwise", head_layers=layers)
    before = torch.tensor(score_rows(ScalarModel(model), ROWS, 8, LAUNCH))
    if bins > 1:
        assert ((before > 1) & (before < 3)).all()
    with torch.no_grad():
        rescale(model, 1.5, 0.25)
        rescale(model, -0.5, 2.0)
    expected = ((before - 1.5) / 0.25 + 0.5) / 2.0
    found = score_rows(ScalarModel(model), ROWS, 8, LAUNCH)
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    save_model(model, toy_tokenizer(), tmp_path / "out")
    again = score_rows(ScalarModel(load_scalar(tmp_path / "out")), ROWS, 8, LAUNCH)
    assert again == pytest.approx(found, abs=1e-5)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    if layers == 2:
        stock = documented("reward_model")(str(tmp_path / "out"))
    config = AutoConfig.from_pretrained(tmp_path / "out")
    ids, mask = right_pad(ROWS, PAD)
    with torch.no_grad():
        logits = stock.eval()(input_ids=ids, attention_mask=mask.long()).logits
    ratings = torch.arange(1.0, bins + 1)
    values = (logits.softmax(-1) * ratings).sum(-1) if bins > 1 else logits.squeeze(-1)
    scale = getattr(config, "reward_scale", 1.0)
    assert hasattr(config, "reward_scale") == (bins > 1)
    assert (scale * values - config.reward_mean).tolist() == pytest.approx(found, abs=1e-4)


def test_figures_on_held_out_ratings(capsys: pytest.CaptureFixture[str]) -> None:
    """Mean squared error, correlation and the ratings' variance, by hand."""
    model, rows = ScalarModel(classifier("gpt2")), rated(8)
    scores = torch.tensor(score_rows(model, [r["ids"] for r in rows], 8, LAUNCH)).double()
    ratings = torch.tensor([row["score"] for row in rows]).double()
    found = figures(model, rows, 3, LAUNCH)
    assert found["rows"] == 8
    assert found["mse"] == pytest.approx(((scores - ratings) ** 2).mean().item(), rel=1e-5)
    expected = torch.corrcoef(torch.stack([scores, ratings]))[0, 1].item()
    assert found["correlation"] == pytest.approx(expected, rel=1e-4)
    assert found["variance"] == pytest.approx(ratings.var(correction=0).item())
    told: list[Any] = []
    metrics = SimpleNamespace(held_out=lambda *given: told.append(given))
    run: Any = SimpleNamespace(config=Config(), saved=3, launch=LAUNCH, metrics=metrics)
    said = judged(model, rows, run)
    assert told == [(3, said)]
    assert said == pytest.approx(found, rel=1e-4)
    assert f"correlation {expected:.3f} on 8 ratings" in capsys.readouterr().out
    same = [{**row, "score": 2.0} for row in rows]
    assert figures(model, same, 8, LAUNCH)["correlation"] is None
    judged(model, same, run)
    assert "correlation -" in capsys.readouterr().out


def test_one_layer_is_stock() -> None:
    """No class of our own where none is needed."""
    model: Any = load_scalar(sft_folder("gpt2"), num_labels=3)
    assert isinstance(model.score, nn.Linear)
    assert type(model) is type(classifier("gpt2"))
