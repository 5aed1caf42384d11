"""Rows selected and gathered, prompts shared out, and an evaluation that disturbs nothing."""

import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from _engines import STOPS
from _models import KINDS, PROMPTS, CountReward, Scored, fixed_rollout, make_trainer

from cores.draws import in_epochs, share
from cores.evaluate import evaluate, sample_pairs
from cores.ppo import Scorer, gather_rows
from cores.ppo.experience import _concatenate, columns
from cores.runtime.launch import Launch

COLUMNS = [f.name for f in fields(Scored)]


def numbered(lengths: list[tuple[int, int]], base: int = 0) -> Scored:
    """Rows of (prompt, reply) lengths whose every number says row and place."""
    left, width = max(p for p, _ in lengths), max(r for _, r in lengths)
    ids = torch.zeros(len(lengths), left + width, dtype=torch.int64)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (p, r) in enumerate(lengths):
        mask[i, left - p : left + r] = True
        ids[i, mask[i]] = 100 * (base + i + 1) + torch.arange(p + r)
    response = mask[:, left:]
    table = ids[:, left:].float()
    given = {name: table + k / 10 for k, name in enumerate(COLUMNS[4:9])}
    ended = torch.tensor([i % 2 == 0 for i in range(len(lengths))])
    scores = torch.arange(len(lengths)).float() + base
    parts = torch.stack([scores, -scores, 2 * scores], dim=1)  # as many sources as tokens may be
    return Scored(ids, mask, response, ended, **given, scores=scores, score_parts=parts)


def rows_of(scored: Scored) -> list[dict[str, Any]]:
    """Each row without padding."""
    result = []
    for i in range(scored.ids.shape[0]):
        row: dict[str, Any] = {"ids": scored.ids[i][scored.mask[i]].tolist()}
        for name in COLUMNS[4:9]:
            row[name] = getattr(scored, name)[i][scored.response_mask[i]].tolist()
        row["parts"] = scored.score_parts[i].tolist()
        row["ended"], row["scores"] = bool(scored.ended[i]), scored.scores[i].item()
        result.append(row)
    return result


def test_select_takes_rows_and_drops_shared_padding() -> None:
    """Invariant 4: every column keeps the rows' own entries; the width is that of the longest
    prompt and the longest reply selected, and prompt and reply meet where they did."""
    scored = numbered([(2, 3), (5, 1), (1, 4), (3, 2)])
    whole = rows_of(scored)
    for rows in ([0], [3, 0], [1, 2], [2], [0, 1, 2, 3]):
        part = scored.select(rows)
        assert rows_of(part) == [whole[i] for i in rows]
        prompt = max([2, 5, 1, 3][i] for i in rows)
        reply = max([3, 1, 4, 2][i] for i in rows)
        assert part.ids.shape == part.mask.shape == (len(rows), prompt + reply)
        for name in ["response_mask", *COLUMNS[4:9]]:
            assert getattr(part, name).shape == (len(rows), reply), name
        assert torch.equal(part.mask[:, prompt:], part.response_mask)


def test_select_by_widths() -> None:
    """Invariant 4: where a rollout has padding, parts of it become as wide as a multiple, whatever
    columns there were; one without padding stays as it is, and no row's entries change."""
    ragged, even = [(2, 3), (5, 1), (1, 4), (3, 2), (2, 3)], [(2, 3)] * 5
    for lengths, rows, widths, prompt, reply in (
        (ragged, [0, 2], 4, 4, 4), (ragged, [0, 1], 4, 8, 4), (ragged, [3, 2], 2, 4, 4),
        (ragged, [0, 4], 4, 4, 4), (ragged, [0, 2], 1, 2, 4), (even, [0, 4], 4, 2, 3),
    ):  # fmt: skip
        scored = numbered(lengths)
        part = scored.select(rows, widths=widths)
        assert rows_of(part) == [rows_of(scored)[i] for i in rows]
        assert part.response_mask.shape == (2, reply)
        assert part.ids.shape == part.mask.shape == (2, prompt + reply)
        assert (part.ids[~part.mask] == 0).all()


def test_select_keeps_the_type() -> None:
    """Invariant 4: an Experience stays one, with its own columns cut alike."""
    trainer = make_trainer("gpt2")
    experience = trainer.estimate(trainer.score(fixed_rollout()))
    part = experience.select([1])
    assert type(part) is type(experience)
    width = int(experience.response_mask[1].sum())
    assert torch.equal(part.returns[0], experience.returns[1, :width])


def test_parts_of_unequal_width_are_joined() -> None:
    """Invariants 4, 21: rows of ranks whose longest prompt and reply differ keep their numbers, in
    rank order; prompts are padded on the left, replies on the right, with an id that exists."""
    first, second = numbered([(2, 3), (1, 1)]), numbered([(4, 1), (3, 2)], base=5)
    parts = [columns(part) for part in (first, second)]
    joined = replace(first, **_concatenate(parts, torch.device("cpu")))
    assert rows_of(joined) == rows_of(first) + rows_of(second)
    assert joined.ids.shape == (4, 4 + 3)
    assert torch.equal(joined.mask[:, 4:], joined.response_mask)
    assert (joined.ids[~joined.mask] == 0).all()
    assert joined.ids.dtype == torch.int64
    assert joined.mask.dtype == joined.response_mask.dtype == joined.ended.dtype == torch.bool


def test_one_process_gathers_nothing() -> None:
    """Invariant 21: with one process the rows are the rank's own."""
    scored = numbered([(2, 3)])
    assert gather_rows(scored, Launch(0, 1, torch.device("cpu"), "fp32")) is scored


@pytest.mark.parametrize("kind", KINDS)
def test_joined_rows_give_the_same_numbers(kind: str) -> None:
    """Invariant 4: log-probs, values and scores of rows joined from two parts = before."""
    trainer = make_trainer(kind, microbatch_size=8)
    prompts = [PROMPTS[:1] * 2, PROMPTS[1:]]
    halves = [
        trainer.score(fixed_rollout(seed=i, width=4 + 2 * i, prompts=p))
        for i, p in enumerate(prompts)
    ]
    parts = [columns(half) for half in halves]
    joined = replace(halves[0], **_concatenate(parts, torch.device("cpu")))
    again = trainer.score(
        type(fixed_rollout())(
            joined.ids, joined.mask, joined.response_mask, joined.rollout_logprobs, joined.ended
        )
    )
    mask = joined.response_mask
    for name in ("logprobs", "ref_logprobs", "values"):
        first, second = getattr(joined, name), getattr(again, name)
        torch.testing.assert_close(first[mask], second[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joined.scores, again.scores, atol=1e-5, rtol=1e-5)


def test_shares_are_disjoint_and_whole() -> None:
    """Invariant 31: ranks see different prompts, together the batch, in rank order."""
    batch = in_epochs(40, 0, 12, 0, "prompts")
    parts = [share(batch, rank, 3) for rank in range(3)]
    assert [len(p) for p in parts] == [4, 4, 4]
    assert [row for part in parts for row in part] == batch
    assert share(batch, 0, 1) == batch


def state() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_has_randomness_of_its_own(kind: str) -> None:
    """Invariant 31: it repeats whatever was drawn before and whichever update it is, differs for
    another seed, and leaves every random state as it found it; nothing is trained by it."""
    trainer = make_trainer(kind)
    found = []
    for update, seed in ((0, 7), (3, 7), (0, 8)):
        torch.manual_seed(update)
        trainer.seed, trainer.state.update = seed, update
        before = state()
        found.append(evaluate(trainer, PROMPTS))
        assert state() == before
    assert found[0].rows == found[1].rows != found[2].rows
    assert trainer.roles.actor.steps == 0


def test_an_evaluation_is_the_same_in_any_batches() -> None:
    """Invariant 31: a reply follows from its number, in batches of one, three or seven."""
    found = []
    for size in (1, 3, 7):
        trainer = make_trainer("gpt2", batch_size=size, minibatch_size=size, microbatch_size=size)
        found.append(evaluate(trainer, [[5, 6], [7], [8, 9, 10], [11], [12, 13], [14], [15]]).rows)
    assert found[0] == found[1] == found[2]


def test_an_evaluation_needs_no_trainer() -> None:
    """What a trainer says, a scorer of the same roles says: there is no optimizer in it."""
    trainer = make_trainer("gpt2")
    alone = Scorer(trainer.config, trainer.roles, trainer.engine, trainer.launch, trainer.seed)
    assert evaluate(alone, PROMPTS) == evaluate(trainer, PROMPTS)


def test_evaluation_covers_each_prompt_once() -> None:
    """Invariants 10, 24: in chunks of a batch, the last one partial; scores are the raw ones and KL
    at the start is 0."""
    trainer = make_trainer(
        "gpt2", CountReward(59), batch_size=3, minibatch_size=3, stop_token_ids=STOPS[1:]
    )
    prompts = [[5, 6], [7], [8, 9, 10], [11], [12, 13], [14], [15]]
    result = evaluate(trainer, prompts)
    assert len(result.scores) == len(result.rows) == 7
    assert len(set(result.lengths)) > 1  # so that there is padding
    for prompt, row, reply, length, score, ended in zip(
        prompts, result.rows, result.replies, result.lengths, result.scores, result.ended,
        strict=True,
    ):  # fmt: skip
        assert row == prompt + reply
        assert len(reply) == length
        assert score == reply.count(59)
        assert ended == (reply[-1] in STOPS)
    assert max(map(abs, result.kl)) < 1e-5
    summary = result.summary()
    assert summary["prompts"] == 7
    assert summary["score"] == pytest.approx(sum(result.scores) / 7, abs=1e-4)
    assert summary["length"] == pytest.approx(sum(result.lengths) / 7, abs=1e-4)


def test_evaluation_reports_the_kl_of_whole_replies() -> None:
    """Invariant 10: nats a reply are the sum over its tokens of log policy - log reference."""
    trainer = make_trainer("gpt2", actor_learning_rate=0.02)
    trainer.step(PROMPTS)
    result = evaluate(trainer, PROMPTS)
    roles = trainer.roles
    for row, reply, kl in zip(result.rows, result.replies, result.kl, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            ours, _ = roles.actor.module(ids, torch.ones_like(ids).bool(), len(reply))
            theirs, _ = roles.frozen_actor(ids, torch.ones_like(ids).bool(), len(reply))
        assert kl == pytest.approx((ours - theirs).sum().item(), abs=1e-4)
    assert max(map(abs, result.kl)) > 1e-2


def test_interval_of_the_summary_by_hand() -> None:
    """Invariant 24: 1.96 standard errors: of (0, 2), 1.96 * sqrt(2) / sqrt(2)."""
    blank = evaluate(make_trainer("gpt2"), PROMPTS[:2])
    summary = replace(blank, scores=[0.0, 2.0], kl=[1.0, 1.0]).summary()
    assert (summary["score"], summary["score_interval"]) == (1.0, 1.96)
    assert (summary["kl"], summary["kl_interval"]) == (1.0, 0.0)
    one = replace(blank, scores=[2.0], kl=[1.0]).summary()  # has no spread: NaN is no JSON
    assert one["score"] == 2.0
    assert not {"score_interval", "kl_interval"} & one.keys()


def test_sample_pairs_hold_both_sides() -> None:
    """Invariant 24: text, score and KL of the same prompt before and after."""
    from _models import toy_tokenizer

    trainer = make_trainer("gpt2", reward=CountReward(59))
    before = evaluate(trainer, PROMPTS)
    trainer.seed = 1
    after = evaluate(trainer, PROMPTS)
    assert before.rows != after.rows
    pairs = sample_pairs(toy_tokenizer(), ["a", "b", "c", "d"], before, after)
    assert [p["prompt"] for p in pairs] == ["a", "b", "c", "d"]
    for i, pair in enumerate(pairs):
        for name, side in (("before", before), ("after", after)):
            assert pair[name]["score"] == side.scores[i]
            assert pair[name]["text"] == toy_tokenizer().decode(
                side.replies[i], skip_special_tokens=True
            )
