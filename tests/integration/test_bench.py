"""The benchmarks measure the workloads that they say, and say what they measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cores.errors import UserError
from cores.runtime.launch import Launch
from research.experiments.peer_trl import optimizer_steps
from scripts.bench import logprobs, machine, ppo_step, rollout, tables
from scripts.bench.clock import Clock, instrumented
from scripts.bench.floors import Rates
from scripts.bench.made import random_model, trainer_of
from scripts.bench.peers.pair import ratio
from scripts.bench.peers.trl_ppo import peer_settings
from scripts.bench.plots import groups
from scripts.bench.workloads import (
    SHAPES,
    WORKLOADS,
    Workload,
    prompts_of,
    settings,
    shape,
    variant,
)

CPU = Launch(0, 1, torch.device("cpu"), "fp32")
SMALL = variant(WORKLOADS["W4"], batch=4, minibatch=2, response=5)


def small_trainer(**changes: Any) -> Any:
    workload = replace(SMALL, **changes)
    return trainer_of(workload, settings(workload, "hf"), CPU)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("gpt2", 124),
        ("opt-350m", 331),
        ("opt-1.3b", 1316),
        ("llama-7b", 6738),
        ("qwen2.5-1.5b", 1544),
        ("llama-3b", 3213),
    ],
)
def test_shapes_are_the_named_models(name: str, millions: float) -> None:
    """Parameters of the published checkpoints."""
    model = random_model(shape(name), torch.device("meta"), scalar=False)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.6)


def test_every_shape_can_score_and_has_no_dropout() -> None:
    for name in SHAPES:
        config = shape(name)
        model = random_model(config, torch.device("meta"), scalar=True)
        assert model.score.out_features == 1
        dropouts = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        assert not any(dropouts)


def test_the_fixed_workloads() -> None:
    """Sizes and optimizer steps of the task, which no later version may change."""
    sizes = {
        w.name: (w.policy, w.scalar, w.batch, w.prompt, w.response, w.epochs, w.minibatch, w.steps)
        for w in WORKLOADS.values()
    }
    assert sizes == {
        "W1": ("gpt2", "gpt2", 128, 64, 128, 4, 32, 16),
        "W2": ("opt-1.3b", "opt-350m", 64, 256, 256, 1, 16, 4),
        "W3": ("llama-7b", "llama-7b", 16, 512, 256, 1, 4, 4),
        "W4": ("tiny", "tiny", 64, 16, 32, 4, 16, 16),
        "W5": ("qwen2.5-0.5b", "qwen2.5-0.5b", 256, 104, 512, 1, 64, 4),
        "W6": ("smollm2-135m", "smollm2-135m", 128, 32, 48, 2, 32, 8),
        "W7": ("qwen2.5-1.5b", "qwen2.5-0.5b", 64, 128, 256, 1, 32, 2),
        "W8": ("llama-3b", "llama-3b", 32, 256, 256, 1, 8, 4),
    }
    assert [w.name for w in WORKLOADS.values() if w.lora] == ["W3", "W8"]
    assert [w.name for w in WORKLOADS.values() if w.precision == "fp32"] == ["W4"]


def test_variants_that_do_not_fit_are_refused() -> None:
    assert variant(WORKLOADS["W1"], batch=16).minibatch == 16
    with pytest.raises(UserError, match="--batch: 40 replies"):
        variant(WORKLOADS["W1"], batch=40)
    with pytest.raises(UserError, match=r"--lengths: a mean of 1\.0"):
        variant(WORKLOADS["W1"], mean_length=1.0)


def test_a_workload_is_a_checked_configuration() -> None:
    """With the stage's own options beside it, and its own errors."""
    w = WORKLOADS["W2"]
    found = settings(w, "hf", ["--model.gradient_checkpointing", "true"])
    assert (found.ppo.batch_size, found.ppo.minibatch_size, found.ppo.epochs) == (64, 16, 1)
    assert (found.ppo.max_prompt_length, found.ppo.max_new_tokens) == (256, 256)
    assert (found.model.precision, found.model.gradient_checkpointing) == ("bf16", True)
    with pytest.raises(UserError, match=r"ppo\.colour"):
        settings(w, "hf", ["--ppo.colour", "red"])


def test_no_reply_stops_and_each_minibatch_is_a_step() -> None:
    """Reference and critic start as actor and reward model do."""
    trainer = small_trainer()
    experience, stats = trainer.step(prompts_of(SMALL, 4, seed=0))
    assert experience.response_mask.all()
    assert not experience.ended.any()
    assert stats["optimizer_steps"] == SMALL.steps == 8
    assert stats["kl"] == pytest.approx(0.0, abs=1e-4)
    eos = trainer.engine.sampling.stop_ids[0]
    with torch.no_grad():
        logits = trainer.roles.actor.unwrapped.model(experience.ids).logits
    assert (logits.softmax(dim=-1)[..., eos] == 0).all()


def test_geometric_lengths_have_their_mean() -> None:
    workload = replace(SMALL, batch=256, minibatch=256, response=16, mean_length=4.0)
    trainer = trainer_of(workload, settings(workload, "hf"), CPU)
    lengths = trainer.rollout(prompts_of(workload, 256, seed=0)).lengths
    assert workload.expected_length == pytest.approx(3.96, abs=0.01)  # 4 (1 - .75^16)
    assert lengths.float().mean().item() == pytest.approx(3.96, abs=4 * 3.5 / 16)


def test_other_lengths_than_the_workloads_are_an_error() -> None:
    ppo_step.check_lengths(SMALL, [[5, 5, 5, 5]])
    with pytest.raises(RuntimeError, match=r"not 5\.0"):
        ppo_step.check_lengths(SMALL, [[5, 5, 5, 4]])


def test_a_clock_charges_the_innermost_span() -> None:
    """Seconds 0 to 9: a phase with a part in it that has a part itself."""
    clock = Clock(torch.device("cpu"), now=iter(range(100)).__next__)
    clock.enter("update")  # 0
    clock.enter("actor")  # 1
    clock.enter("optimizer")  # 2
    clock.leave()  # 3
    clock.leave()  # 4
    clock.leave()  # 5
    assert clock.seconds == {"update": 2, "update/actor": 2, "update/optimizer": 1}


@pytest.mark.parametrize("lora", [0, 4])
def test_every_part_of_a_step_is_timed(lora: int) -> None:
    """With adapters the reference is the actor without them. The parts add up to the step."""
    trainer = small_trainer(lora=lora)
    ticks = iter(range(10**6)).__next__
    clock = Clock(torch.device("cpu"), now=ticks)
    with instrumented(trainer, clock):
        trainer.step(prompts_of(SMALL, 4, seed=0))
    assert not clock.open
    parts = {f"score/{name}" for name in ("actor", "reference", "critic", "reward")}
    parts |= {f"update/{name}" for name in ("actor", "critic", "optimizer")}
    assert set(clock.seconds) == parts | {"rollout", "score", "estimate", "update"}
    between = 4 - 1  # from one phase to the next
    assert sum(clock.seconds.values()) == ticks() - 1 - between
    seconds = dict(clock.seconds)
    trainer.step(prompts_of(SMALL, 4, seed=0))
    assert clock.seconds == seconds  # nothing is left behind


def test_the_peer_takes_as_many_optimizer_steps() -> None:
    for name in ("W1", "W4"):
        given = peer_settings(WORKLOADS[name], 3, None)
        assert optimizer_steps(given) == 3 * WORKLOADS[name].steps
        assert given["local_rollout_forward_batch_size"] == WORKLOADS[name].batch
    assert not given["bf16"]
    with pytest.raises(UserError, match="fixed lengths"):
        peer_settings(variant(WORKLOADS["W4"], mean_length=8.0), 3, None)


def run_of(batch: int, seconds: list[float], **more: Any) -> dict[str, Any]:
    middle = sorted(seconds)[len(seconds) // 2]
    return {
        "workload": {"batch": batch},
        "step_seconds": seconds,
        "samples_per_second": batch / middle,
        **more,
    }


def test_the_ratio_is_of_the_medians_over_all_rounds() -> None:
    """Ours 1 1 2 2 9, theirs 4 4 4 6 6 6 over two rounds."""
    ours = [run_of(8, [1.0, 1.0, 9.0]), run_of(8, [2.0, 2.0])]
    theirs = [run_of(8, [4.0, 6.0, 6.0]), run_of(8, [4.0, 4.0, 6.0])]
    found = ratio(ours, theirs)
    assert (found["ours"], found["peer"]) == (4.0, 1.6)
    assert found["ratio"] == pytest.approx(2.5)
    assert found["ratio_by_round"] == [6.0, 2.0]


def test_bars_hold_every_second() -> None:
    phases = {
        "rollout": 1.0,
        "score": 2.0,
        "score/actor": 4.0,
        "estimate": 8.0,
        "update": 16.0,
        "update/actor": 32.0,
        "update/critic": 64.0,
        "update/optimizer": 128.0,
    }
    found = groups(phases)
    assert (found["scoring"], found["actor"], found["rest"]) == (6.0, 32.0, 24.0)
    assert sum(found.values()) == sum(phases.values())


def test_a_measurement_becomes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured here on a small workload, written and read again."""
    monkeypatch.setitem(WORKLOADS, "W4", SMALL)
    monkeypatch.setattr(machine, "rates_of", lambda _: (Rates(1e10, 1e10), 1e10))
    small = Workload("tiny", "tiny", "tiny", 2, 4, 3, 1, 2, 2, precision="fp32")
    monkeypatch.setattr(rollout, "grid", lambda *_: [(small, "hf")])
    common = ["--json", str(tmp_path / "W4.json"), "--updates", "1"]
    ppo_step.main(["--workload", "W4", "--profile", str(tmp_path / "profile.txt"), *common])
    rollout.main(["--model", "tiny", "--repeats", "1", "--json", str(tmp_path / "rollout.json")])
    assert "aten::addmm" in (tmp_path / "profile.txt").read_text(encoding="utf-8")
    measured = tables.load(tmp_path)
    step = next(f for f in measured if f["kind"] == "ppo_step")
    assert step["standard"]
    assert sum(step["phases"].values()) > 0
    peer = {**step, "peer": "TRL 1.12.0"}
    pair = {"kind": "pair", **ratio([step], [peer]), "rounds": {"ours": [step], "peer": [peer]}}
    places = tables.render([*measured, pair], ["performance/phases.png"])
    assert places["steps"].count("\n") == 2
    assert "| W4, graph |" in places["steps"]
    assert "| update/optimizer |" in places["phases"]
    assert "| 4 -> 3 | fixed | 2 | **" in places["rollouts"]
    assert "| W4, graph, against TRL 1.12.0 |" in places["pairs"]
    assert "| **1.00** |" in places["pairs"]
    assert places["costs"] == tables.NOTHING
    assert places["machines"].count("\n") == 0  # one machine, said once


def test_log_probs_by_every_way_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch's and TRL's agree in values and gradients with torch's, a wrong one has a gap, and a
    way that fails is said and counted."""
    words = "--rows 2 --response 8 --vocabulary 64 --width 16 --repeats 1".split()
    file = tmp_path / "logprobs.json"
    with pytest.raises(SystemExit) as end:
        logprobs.main([*words, "--json", str(file)])
    assert end.value.code == 0
    places = tables.render(tables.load(tmp_path), [])
    assert "16 tokens of 16, vocabulary 64, " in places["logprobs"]
    rows = places["logprobs"].splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| torch", "| trl"]
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    assert max(cell["gap"] for cell in cells.values()) < 1e-5
    assert max(cell["gradient_gap"] for cell in cells.values()) < 1e-4

    def wrong(logits: Any, ids: Any, *_: Any) -> Any:
        chosen = logits.gather(-1, ids[:, None]).squeeze(-1)
        return chosen, chosen.detach()

    theirs = "trl.trainer.utils.selective_log_softmax_and_entropy"
    monkeypatch.setattr(theirs, wrong)
    with pytest.raises(SystemExit):
        logprobs.main([*words, "--json", str(file)])
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    assert cells["trl"]["gap"] > 1
    assert cells["trl"]["gradient_gap"] > 1e-2
    assert cells["torch"]["gap"] < 1e-5

    def broken(*_: Any) -> None:
        raise RuntimeError("TRL was asked")

    monkeypatch.setattr(theirs, broken)
    with pytest.raises(SystemExit) as end:
        logprobs.main(words)
    assert end.value.code == 1
    assert "trl: failed, RuntimeError: TRL was asked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_numbers_have_three_figures(value: float, text: str) -> None:
    assert tables.number(value) == text
