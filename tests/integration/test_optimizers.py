"""How stages 1 and 2 step: optimizers, rates, decay, the order of rows."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from _models import PAD, parameters, policy_of
from _stages import begun
from _training import random_rows, sft_rows, training_config
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader
from transformers.optimization import Adafactor

from cores.config import Config, SFTSection
from cores.errors import UserError
from cores.sharding import Trained
from cores.training.lasting import Lasting
from cores.training.optimizers import ByLength, Lion
from cores.training.sft import collate, train_sft


def trained(folder: Path, rows: int = 8, **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A model behind some steps of stage 1, and its metrics."""
    config = training_config(folder, 8)
    config = replace(config, sft=replace(config.sft, **changes))
    run = begun(config)
    model = train_sft(policy_of("gpt2"), sft_rows(rows), run)
    text = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
    return model, [json.loads(line) for line in text.splitlines()]


def test_lion_by_hand() -> None:
    """Rate .1, decay .5; the first gradients are (2, -1), the second (-1, -1): b1 m + (1 - b1) g
    is .9 * .02 - .1 < 0 and .9 * -.01 - .1 < 0, so the first weight turns."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Lion([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.tensor([2.0, -1.0])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([0.85, 1.05]))
    mean = optimizer.state[weight]["exp_avg"]
    torch.testing.assert_close(mean, torch.tensor([0.02, -0.01]))
    weight.grad = torch.tensor([-1.0, -1.0])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([0.85 * 0.95 + 0.1, 1.05 * 0.95 + 0.1]))
    torch.testing.assert_close(mean, torch.tensor([0.0098, -0.0199]))


@pytest.mark.parametrize(
    ("name", "made", "options"),
    [("lion", Lion, {}), ("adafactor", Adafactor, {"relative_step": False})],
)
def test_the_trainer_steps_with_it(
    name: str, made: Any, options: dict[str, bool], tmp_path: Path
) -> None:
    """A step is that of the optimizer alone on the same gradients, at the rate given."""
    model, _ = trained(tmp_path, optimizer=name, learning_rate=1e-2, max_steps=1, max_grad_norm=1e9)
    alone: Any = policy_of("gpt2")
    alone(**collate(sft_rows(8), PAD)).loss.backward()
    clear = {n: p.grad.abs() > 1e-6 for n, p in alone.named_parameters()}  # no rounding error
    scaled = {"scale_parameter": False} if options else {}
    made(alone.parameters(), lr=1e-2, **options, **scaled).step()
    start, end = parameters(policy_of("gpt2")), parameters(model)
    for weight, expected in parameters(alone).items():
        where = clear[weight]
        torch.testing.assert_close(end[weight][where], expected[where], atol=1e-6, rtol=1e-4)
        assert not where.any() or (end[weight] - start[weight])[where].abs().max() > 1e-5


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.868198, 0.55, 0.231802]),
        ("restarts", [0.5, 1, 1, 0.55, 1, 0.55]),
        ("constant", [0.5, 1, 1, 1, 1, 1]),
    ],
)
def test_rates_of_the_steps(schedule: str, expected: list[float], tmp_path: Path) -> None:
    """Two steps of warm-up, then the fall, to a tenth with a cosine; 6 steps are two epochs."""
    floor = 0.1 if schedule in ("cosine", "restarts") else 0.0
    _, found = trained(
        tmp_path, 24, lr_schedule=schedule, warmup=2, lr_floor=floor, max_steps=None, epochs=2
    )
    assert [row["learning_rate"] for row in found] == pytest.approx(
        [1e-3 * factor for factor in expected], rel=1e-4
    )


def test_warmup_longer_than_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as a recipe's 100 steps on few rows: said, and not refused."""
    trained(tmp_path, warmup=100)
    assert "sft.warmup: the rate still rises at the end, as the run has 2 steps of 100" in (
        capsys.readouterr().out
    )


def test_decay_by_name(tmp_path: Path) -> None:
    """At a rate of 1e-12 nothing moves but by the decay: all but what the patterns name."""
    start = parameters(policy_of("gpt2"))
    model, _ = trained(
        tmp_path, weight_decay=0.25 / 1e-12, learning_rate=1e-12, lr_schedule="constant",
        no_decay=["*.ln_*", "transformer.wpe.weight"],
    )  # fmt: skip
    for name, weight in parameters(model).items():
        spared = ".ln_" in name or "wpe" in name
        expected = start[name] * (1.0 if spared else 0.75**2)
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5, msg=name)


def test_a_pattern_that_fits_nothing(tmp_path: Path) -> None:
    """Refused with names that there are."""
    with pytest.raises(UserError, match=r"sft\.no_decay: 'layernorm\*' fits no weight of GPT2LM"):
        trained(tmp_path, weight_decay=0.1, no_decay=["layernorm*"])


def test_counts_of_steps_come_back_as_numbers() -> None:
    """From a checkpoint, as bitsandbytes' kernels on GPUs take no tensors for them."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer, nothing = SimpleNamespace(optimizer=Lion([weight], lr=0.1)), cast(Any, None)
    held = Trained(nothing, optimizer, nothing, 0.0)
    assert type(held._placed("step", torch.tensor(3), weight)) is int
    assert isinstance(held._placed("RMS", torch.tensor(3.0), weight), torch.Tensor)


def test_rows_by_length() -> None:
    """Every row once, the short batch last, batches narrow; another order in another epoch, and the
    same again."""
    lengths = [len(row) for row in random_rows(1003)]
    order = ByLength(lengths, 8, seed=3)
    first = list(order)
    assert sorted(first) == list(range(1003)) == sorted(set(first))
    batches = [[lengths[i] for i in first[k : k + 8]] for k in range(0, 1000, 8)]
    spread = [max(batch) - min(batch) for batch in batches]
    assert sum(spread) / len(spread) < 0.2
    assert batches != sorted(batches)
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    assert list(order) == first == list(ByLength(lengths, 8, seed=3))
    assert first != list(ByLength(lengths, 8, seed=4))


def test_the_order_goes_on_where_several_ranks_resume() -> None:
    """accelerate's loader of such an epoch does not tell its sampler which one it is."""
    lengths = [len(row) for row in random_rows(64)]
    section = SFTSection(group_by_length=True, batch_size=8)
    resumed = SimpleNamespace(numbers={"trainer": {"epoch": 1.25}})
    run = SimpleNamespace(resumed=resumed, config=Config())
    trainer = SimpleNamespace(
        section=section, run=run, train_dataset={"input_ids": [[0] * n for n in lengths]}
    )
    sampler = Lasting._get_train_sampler(cast(Any, trainer))
    loader = DataLoader(cast(Any, range(64)), batch_size=4, sampler=sampler)
    ours = prepare_data_loader(loader, None, num_processes=2, process_index=0)
    rest = skip_first_batches(ours, 2)
    rest.set_epoch(1)
    order = ByLength(lengths, 8, Config().seed)
    order.set_epoch(1)
    assert next(iter(rest)).tolist() == list(order)[16:20]


def test_the_trainer_takes_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows reach the model in it, epoch by epoch."""
    seen: list[list[int]] = []

    def noting(rows: list[dict[str, list[int]]], **others: Any) -> Any:
        seen.extend(row["input_ids"] for row in rows)
        return collate(rows, **others)

    monkeypatch.setattr("cores.training.sft.collate", noting)
    trained(tmp_path, 20, group_by_length=True, max_steps=None, epochs=2)
    rows = [row["input_ids"] for row in sft_rows(20)]
    order = ByLength([len(row) for row in rows], 8, Config().seed)
    expected = [rows[i] for i in order]
    order.set_epoch(1)
    assert seen == expected + [rows[i] for i in order]
