"""What each of two processes does, the exchange between them played by the tests."""

import re
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _models import (
    LAUNCH,
    PROMPTS,
    CountReward,
    fixed_rollout,
    make_trainer,
    policy_of,
    ppo_config,
    reward_folder,
    sft_folder,
    toy_tokenizer,
)
from _stages import begun
from _training import random_rows, sft_rows
from torch import Tensor

from cores.config import CoatiSection
from cores.draws import in_epochs, uniforms
from cores.errors import UserError
from cores.evaluate import evaluate
from cores.models import ScalarModel, load_scalar
from cores.ppo import PPOState, experience
from cores.rollout import Rollout
from cores.run.checkpoint import State
from cores.runtime.launch import Launch
from cores.sharding import whole
from cores.training import calibration, sft
from cores.training.calibration import policy_engine
from cores.training.ppo import train

RANKS = [Launch(rank, 2, torch.device("cpu"), "fp32") for rank in (0, 1)]


def part_of(rollout: Rollout, rows: slice) -> Rollout:
    """Some rows of a rollout."""
    found = {f.name: getattr(rollout, f.name) for f in fields(Rollout)}
    return Rollout(**{name: x[rows] for name, x in found.items() if x is not None})


def test_whitening_covers_the_rows_of_both_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 19, 21: each rank scores half of the rows; after the exchange each has the
    experience that one process makes of all rows, whitened over all of them."""
    trainer, rollout = make_trainer("gpt2", batch_size=8), fixed_rollout(rows=8)
    whole = trainer.estimate(trainer.score(rollout))
    parts = [trainer.score(part_of(rollout, half)) for half in (slice(0, 4), slice(4, 8))]
    sent = [experience.columns(part) for part in parts]
    for launch, part in zip(RANKS, parts, strict=True):

        def exchange(own: list[Any], rank: int = launch.rank) -> list[Any]:
            assert all(torch.equal(own[0][name], sent[rank][name]) for name in sent[rank])
            return sent

        monkeypatch.setattr(experience, "gather_object", exchange)
        found = trainer.estimate(experience.gather_rows(part, launch))
        for name in ("rewards", "advantages", "returns"):
            torch.testing.assert_close(getattr(found, name), getattr(whole, name))


def test_a_minibatch_is_shared_by_the_ranks() -> None:
    """Invariants 21, 31: the two learn from different rows of it, together from all."""
    trainer, seen = make_trainer("gpt2", microbatch_tokens=1), []
    rows, experience = torch.tensor([5, 2, 7, 0, 1, 3]), trainer.score(fixed_rollout(8))
    for launch in RANKS:
        trainer.launch = launch
        parts = list(trainer._micro_batches(experience, rows.tolist()))
        assert [tuple(turn) for _, turn in parts] == [(True, False), (False, False), (False, True)]
        seen += [score for part, _ in parts for score in part.scores.tolist()]
    assert sorted(seen) == sorted(experience.scores[rows].tolist())


class Added:
    """Plays what two ranks add up: the second pass of a rank is told what the first one sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[Tensor] = []
        self.told: list[Tensor] = []
        monkeypatch.setattr(torch.distributed, "all_reduce", self.all_reduce)

    def all_reduce(self, own: Tensor) -> None:
        """The sum, as if the other sent the same where it has not been here."""
        self.sent.append(own.clone())
        own += self.told.pop(0) if self.told else own.clone()

    def turn(self) -> None:
        """The other rank goes on."""
        self.told, self.sent = self.sent, []


SIZES = {"each alone": 1, "a few": 500, "all": whole.BUCKET}


@pytest.mark.parametrize("bucket", SIZES)
def test_gradients_are_the_sum_over_ranks(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 21: each rank's gradients are its part of a sum; behind the last micro-batch both
    have what one process has of all rows, however many tensors go around at a time."""
    monkeypatch.setattr(whole, "BUCKET", SIZES[bucket])
    rollout, added = fixed_rollout(), Added(monkeypatch)

    def summed(processes: int, rows: slice) -> list[Tensor]:
        role = make_trainer("gpt2").roles.critic
        role.trained.accelerator = SimpleNamespace(num_processes=processes)
        role.trained.backward(role.module(rollout.ids[rows], rollout.mask[rows]).sum(), last=True)
        if processes > 1:
            role.trained.add_up()
        return [p.grad for p in role.trained.parameters if p.grad is not None]

    expected = summed(1, slice(None))
    assert not added.sent
    summed(2, slice(0, 3))
    added.turn()
    torch.testing.assert_close(summed(2, slice(3, None)), expected)
    exchanges = len(added.sent) - 1  # the first tells who has a gradient
    assert exchanges == {"each alone": len(expected), "all": 1}.get(bucket, exchanges)
    assert exchanges <= len(expected)


def test_a_weight_that_one_rank_alone_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks would add up other weights than each other: said by name, in the first step on both."""
    added = Added(monkeypatch)
    for rank in (0, 1):
        trained = make_trainer("gpt2").roles.critic.trained
        trained.accelerator = SimpleNamespace(num_processes=2)
        names = list(trained.named())
        for parameter in trained.parameters[rank:]:
            parameter.grad = torch.ones_like(parameter)
        if rank == 0:
            added.told = [torch.ones(len(names)) * (torch.arange(len(names)) > 0)]
        with pytest.raises(UserError, match=rf"1 weights have .*\({re.escape(names[0])}\)"):
            trained.add_up()
        added.turn()
    trained.clear()
    vars(trained)["_there"] = [True] * len(names)
    with pytest.raises(UserError, match=f"{len(names)} weights have a gradient in some steps"):
        trained.add_up()


class Asked:
    """A trainer that notes the prompts of its updates."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.state = PPOState(0.1)
        self.roles = SimpleNamespace(
            actor=SimpleNamespace(steps=0, unwrapped=SimpleNamespace(model=torch.nn.Identity()))
        )
        self.prompts: list[list[list[int]]] = []

    def step(self, prompts: list[list[int]], *_: Any) -> tuple[Any, dict[str, float]]:
        """Notes, and nothing learned."""
        self.prompts.append(prompts)
        self.state.update += 1
        names = ("score", "kl", "entropy", "response_length", "ended")
        return SimpleNamespace(response_mask=torch.ones(1, 1)), dict.fromkeys(names, 0.0)

    def state_dict(self) -> State:
        """None to speak of."""
        return State({}, {})


def asked_by(launch: Launch, root: Path, count: int = 12, **ppo: Any) -> list[list[int]]:
    """The prompts of each update on a rank."""
    settings = {"updates": 3, "batch_size": 4, "eval_prompts": 0, "sample_every": 0, **ppo}
    config = replace(ppo_config(**settings), output_dir=str(root))
    rows = [{"input_ids": [i], "prompt": str(i)} for i in range(count)]
    data: Any = SimpleNamespace(train=rows, test=[])
    trainer: Any = Asked(launch)
    with begun(config, "ppo", launch) as run:
        train(trainer, data, toy_tokenizer(), run)
    return [[ids[0] for ids in update] for update in trainer.prompts]


def test_ranks_see_other_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 31: of every batch each rank gets its own part, in rank order; together they are
    those of one process, and an epoch has every prompt once."""
    monkeypatch.setattr(Launch, "shared", lambda self, value: value)
    monkeypatch.setattr(Launch, "agree", lambda self, *values: list(values))
    first, second = (asked_by(launch, tmp_path / str(launch.rank)) for launch in RANKS)
    alone = asked_by(LAUNCH, tmp_path / "alone")
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    assert sorted(chain(*alone)) == list(range(12))
    assert list(chain(*alone)) == in_epochs(12, 0, 12, 0, "prompts")


def test_a_batch_has_as_many_prompts_as_groups(tmp_path: Path) -> None:
    """They differ; an epoch has every prompt once. Coati's same_prompts repeats the first batch,
    with that estimator alone."""
    found = asked_by(LAUNCH, tmp_path / "a", estimator="rloo", samples_per_prompt=2, batch_size=8)
    assert [len(batch) for batch in found] == [4] * 3
    assert sorted(chain(*found)) == list(range(12))
    for name, same in (("coati", True), ("coati", False), ("gae", True)):
        coati = CoatiSection(same_prompts=same)
        place = tmp_path / f"{name}{same}"
        first, second, _ = asked_by(LAUNCH, place, estimator=name, coati=coati)
        assert (first == second) == (name == "coati" and same)


def test_evaluation_over_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 24, 31: each rank samples its part by the numbers of its rows, the replies that
    one process would; a row that fills the last part is not counted."""
    trainer = make_trainer("gpt2", reward=CountReward(59))
    prompts = PROMPTS[:3]
    alone = evaluate(trainer, prompts)
    asked: list[tuple[list[list[int]], int]] = []
    sent: list[Any] = []
    sample = trainer.rollout

    def noted(own: list[list[int]], first: int, purpose: str, rows: Any) -> Rollout:
        asked.append((own, first))
        return sample(own, first, purpose, rows)

    monkeypatch.setattr(Launch, "agree", lambda self, *values: list(values))
    monkeypatch.setattr(trainer, "rollout", noted)
    monkeypatch.setattr(experience, "gather_object", lambda own: (sent.extend(own), own * 2)[1])
    for trainer.launch in RANKS:
        evaluate(trainer, prompts)
    assert asked == [(prompts[:2], 0), ([prompts[2], prompts[2]], 2)]
    monkeypatch.setattr(experience, "gather_object", lambda _: sent)
    assert evaluate(trainer, prompts) == alone


def test_two_ranks_sample_the_replies_of_one() -> None:
    """Invariants 4, 31: each the replies to its part of the prompts, by the rows' own numbers."""
    trainer = make_trainer("gpt2")
    alone = trainer.rollout(PROMPTS)
    found = []
    for trainer.launch in RANKS:
        first = 2 * trainer.launch.rank
        part = trainer.rollout(PROMPTS[first : first + 2], first)
        found += [part.row(i) for i in range(2)]
    assert found == [alone.row(i) for i in range(4)]


def test_calibration_over_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 12, 31: they sample for other prompts the replies that one process would, and
    know where these begin."""
    nobody: Any = None
    folder = sft_folder("gpt2")
    engine = policy_engine(ppo_config(), folder, toy_tokenizer(), LAUNCH)
    alone = engine.generate(PROMPTS, uniforms(4, 6, 0, "calibration"))
    found: list[list[int]] = []
    lengths: list[list[int]] = []

    def scored(model: Any, rows: Any, size: int, launch: Any, about: Any, images: Any) -> None:
        lengths.append([each["prompt_length"] for each in about])
        raise InterruptedError  # what follows is the same on all ranks

    monkeypatch.setattr(calibration, "gather_object", found.extend)
    monkeypatch.setattr(calibration, "score_rows", scored)
    asked = [{"input_ids": prompt} for prompt in PROMPTS]
    for launch in RANKS:
        with pytest.raises(InterruptedError):
            calibration.calibrate(ppo_config(), nobody, folder, asked, toy_tokenizer(), launch)
    assert found == [alone.row(i) for i in (0, 2, 1, 3)]
    assert lengths == [[len(PROMPTS[i]) for i in (0, 2, 1, 3)]] * 2


def test_scores_of_two_ranks_are_in_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 25: the ranks score rows in turn; score i is that of row i."""
    model, rows = ScalarModel(load_scalar(reward_folder("gpt2"))), random_rows(7)
    alone = calibration.score_rows(model, rows, 2, LAUNCH)
    sent: list[Any] = []
    for launch in RANKS:
        monkeypatch.setattr(calibration, "gather_object", lambda own: (sent.extend(own), own)[1])
        calibration.score_rows(model, rows, 2, launch)
    assert len(sent) == 7
    monkeypatch.setattr(calibration, "gather_object", lambda _: sent)
    assert calibration.score_rows(model, rows, 2, RANKS[0]) == pytest.approx(alone, abs=1e-6)


def test_the_held_out_loss_of_two_ranks_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 21: each measures its rows; sums and counts are added before they are divided."""
    model, rows = policy_of("gpt2"), sft_rows(7)
    alone = sft.held_out_loss(model, rows, 2, LAUNCH)
    sent: list[Any] = []
    for launch in RANKS:
        monkeypatch.setattr(sft, "gather_object", lambda own: (sent.extend(own), own)[1])
        sft.held_out_loss(model, rows, 2, launch)
    monkeypatch.setattr(sft, "gather_object", lambda _: sent)
    assert sft.held_out_loss(model, rows, 2, RANKS[1]) == pytest.approx(alone, rel=1e-5)
