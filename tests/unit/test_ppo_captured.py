"""Captured passes: the same numbers, whatever is copied into them. No GPU is needed: a stand-in for
a graph runs its work again on the addresses that it was captured with."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _engines import CAPTURABLE
from _models import (
    LAUNCH,
    ROUNDING,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
)
from _ppo import experience_of

from cores.config import LoraSection
from cores.errors import UserError
from cores.ppo import passes
from cores.ppo.roles import response_values
from cores.runtime import captured
from cores.runtime.captured import Captured, Graph, Tensors


@dataclass
class Again:
    """Stands for a CUDA graph."""

    work: Any
    inputs: Tensors
    outputs: Tensors

    def replay(self) -> None:
        """The work, on the inputs' addresses, into the outputs'."""
        self.outputs.update(self.work(self.inputs))


class Replaying(Captured):
    """Captures stand-ins."""

    def _capture(self, inputs: Tensors, work: Any) -> Graph:
        own, outputs = {name: value.clone() for name, value in inputs.items()}, {}
        return Graph(Again(work, own, outputs), own, outputs)  # type: ignore[arg-type]


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "Captured", Replaying)
    monkeypatch.setattr(passes.Passes, "_problem", lambda self, role: None)


def trained(updates: int = 3, ranks: int = 1, **ppo: Any) -> tuple[Any, list[dict[str, float]]]:
    """A trainer after updates on changing rows, and their statistics; as one of several ranks, of
    which nobody but the test adds anything."""
    settings = {"microbatch_tokens": 20, "minibatch_size": 4, "batch_size": 8, "epochs": 2}
    settings |= {"actor_learning_rate": 0.001, "updates": max(4, updates + 2), **ROUNDING}
    trainer = make_trainer("gpt2", **{**settings, **ppo})
    trainer.passes.packed = True  # as in half precision on a GPU
    trainer.passes.launch = replace(LAUNCH, world=ranks)
    for role in trainer.roles.trained:
        role.trained.accelerator = SimpleNamespace(num_processes=ranks)
    found = []
    for seed in range(updates):
        trainer.state.kl_coef = 0.1 * (seed + 1)
        found += trainer.update(experience_of(trainer))  # shapes come again
    return trainer, found


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(
    "ppo",
    [
        {},
        {"microbatch_tokens": 99},
        {"microbatch_tokens": 1},
        {"microbatch_tokens": 15},
        {"kl_in": "loss", "kl_kind": "k2"},
        {"entropy_coef": 0.1},
        {"loss_mean": "sequences"},
        {"lr_schedule": "linear", "updates": 3},
    ],
)
def test_captured_passes_change_nothing(ppo: dict[str, Any]) -> None:
    """Invariant 21: weights and statistics, over rows of all lengths, a changing price of KL and
    learning rate, steps of one, two and four passes."""
    plain, expected = trained(**ppo, passes="eager")
    same, found = trained(**ppo)
    assert same.passes.captured.graphs
    assert found == [pytest.approx(step, rel=1e-4, abs=1e-6) for step in expected]
    for role in ("actor", "critic"):
        a, b = (parameters(getattr(t.roles, role).unwrapped) for t in (plain, same))
        assert largest_difference(a, b) < 1e-6


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("tokens", [20, 99])
def test_several_ranks_add_up_between_captured_passes_and_a_captured_step(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is exchanged within a graph; each step is, once, and the weights are those of eager
    passes."""
    exchanged = []

    def all_reduce(own: torch.Tensor) -> None:
        exchanged.append(own.numel())
        own += own.roll(1)  # some other gradient, as far as this rank can tell

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    alone, _ = trained(microbatch_tokens=tokens, passes="eager")
    assert not exchanged
    plain, expected = trained(ranks=2, microbatch_tokens=tokens, passes="eager")
    told = list(exchanged)
    exchanged.clear()
    same, found = trained(ranks=2, microbatch_tokens=tokens)
    assert exchanged == told
    assert {key[0] for key in same.passes.captured.graphs} >= {"actor", "critic"}
    assert [t.roles.actor.steps for t in (alone, plain, same)] == [12] * 3
    assert found == [pytest.approx(step, rel=1e-4, abs=1e-6) for step in expected]
    for role in ("actor", "critic"):
        by = [parameters(getattr(t.roles, role).unwrapped) for t in (alone, plain, same)]
        assert largest_difference(by[1], by[2]) < 1e-6
        assert largest_difference(by[0], by[1]) > 1e-5


@pytest.mark.usefixtures("_stand_in")
def test_captured_scoring_changes_nothing() -> None:
    """What all models say of rows in another order each time, and of as many as need filler."""
    plain, same = make_trainer("gpt2", passes="eager"), make_trainer("gpt2")
    for turn in range(4):
        columns = {k: v for k, v in vars(fixed_rollout(8)).items() if v is not None}
        rolled: Any = {name: column.roll(turn, 0) for name, column in columns.items()}
        a, b = (t.score(replace(fixed_rollout(8), **rolled)) for t in (plain, same))
        for name in ("logprobs", "ref_logprobs", "entropy", "values"):
            found, expected = (getattr(x, name)[x.response_mask] for x in (b, a))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(b.score_parts, a.score_parts, atol=1e-5, rtol=1e-5)
    assert [key[0][0] for key in same.passes.captured.graphs] == ["score"]


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("lora", [0, 4])
def test_what_graphs_read_stays_where_it_is(lora: int) -> None:
    """A graph knows addresses: of weights, optimizer state, learning rates, and of gradients where
    a step has several passes."""
    trainer, _ = trained(lora=LoraSection(rank=lora), lr_schedule="linear", updates=9)

    def addresses() -> list[int]:
        found = []
        for role in trainer.roles.trained:
            states = role.optimizer.state.values()
            kept = trainer.passes.kept[role.name].tensors
            tensors = [
                *role.trained.parameters,
                *(t for state in states for t in state.values()),
                *kept,
            ]
            rates = [group["lr"] for group in role.optimizer.param_groups]
            found += [t.data_ptr() for t in [*tensors, *rates] if t is not None]
        return found

    before = addresses()
    assert len(before) > 40
    for _ in range(2):
        trainer.update(experience_of(trainer))
        assert addresses() == before
    assert all(p.grad is None for role in trainer.roles.trained for p in role.trained.parameters)


@pytest.mark.parametrize("kind", CAPTURABLE)
def test_micro_batches_wider_than_the_models_positions(kind: str) -> None:
    """Invariant 4: rows that fit keep their log-probs and values, however wide they are made."""
    trainer = make_trainer(kind)
    experience = experience_of(trainer)
    most = trainer.roles.actor.unwrapped.model.config.max_position_embeddings
    narrow, wide = (experience.select([0, 1, 3], widths=widths) for widths in (1, most + 8))
    assert narrow.ids.shape[1] < most < wide.ids.shape[1]
    with torch.no_grad():
        for found in (
            lambda e: trainer.roles.actor.says.logprobs(e.rows)[0],
            lambda e: response_values(trainer.roles.critic.says, e, trainer.config),
        ):
            a, b = (found(e)[e.response_mask] for e in (narrow, wide))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_shape_is_captured_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shape and key on its own, and no more graphs than there may be."""
    monkeypatch.setattr(captured, "GRAPHS", 2)
    runs, made = [], Replaying()

    def work(inputs: Tensors) -> Tensors:
        runs.append(len(inputs["x"]))
        return {"y": 2 * inputs["x"]}

    for key, size in (("a", 2), ("a", 2), ("a", 3), ("a", 2), ("b", 2), ("a", 3), ("a", 3)):
        x = torch.rand(size)
        assert torch.equal(made.run(key, {"x": x}, work)["y"], 2 * x)
    assert len(made.graphs) == 2
    for _ in range(4):
        made.run("b", {"x": torch.rand(2)}, work)
    assert len(made.graphs) == 2
    assert runs == [2, 2, 3, 2, 2, 3, 3, 2, 2, 2, 2]


def test_results_outlive_the_next_replay() -> None:
    made = Replaying()
    kept = [made.run("a", {"x": torch.full((1,), float(i))}, dict) for i in range(5)]
    assert [each["x"].item() for each in kept] == [0, 1, 2, 3, 4]


def test_passes_that_cannot_be_captured_are_refused() -> None:
    with pytest.raises(UserError, match=r"ppo\.passes: captured .* there is no GPU"):
        make_trainer("gpt2", passes="captured")
