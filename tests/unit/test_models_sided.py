"""Stages 2 and 3 of encoder-decoders: what a forward pass of stock T5 says is what policy, value,
engine and update read, with prompts and replies of several lengths."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from _documented import documented
from _families import SIDED
from _models import (
    EXCLUDED,
    LAUNCH,
    PAD,
    PROMPTS,
    CountReward,
    fixed_rollout,
    make_trainer,
    policy_of,
    reward_folder,
    scalar_of,
)
from _ppo import SGD, experience_of, gradients
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSeq2SeqLM

from cores.draws import uniforms
from cores.models import Actor, ScalarModel
from cores.models.rows import Policy, Rows, Value
from cores.ppo.ptx import PtxRows, ptx_loss
from cores.rollout.engine import Rollout, Sampling
from cores.rollout.hf import HFEngine
from cores.training.calibration import score_rows
from cores.training.reward import collate
from cores.training.sft import collate as collate_sft

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
ENDS = [3]


def rows_of(rollout: Rollout) -> Rows:
    """As models read it."""
    return Rows(rollout.ids, rollout.mask, rollout.response_mask.shape[1])


def sides(rollout: Rollout) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, prompt (1, P) and reply (1, T) of each row, without padding."""
    for i, response in enumerate(rollout.response_mask):
        row = rollout.ids[i][rollout.mask[i]]
        yield i, row[None, : -int(response.sum())], row[None, -int(response.sum()) :]


def stock(model: Any, prompt: Tensor, reply: Tensor) -> Any:
    """The model's own forward pass: its decoder reads the start token and the reply."""
    start = torch.full((1, 1), PAD)
    return model(input_ids=prompt, decoder_input_ids=torch.cat([start, reply], dim=1))


@torch.no_grad()
def test_log_probs_are_those_of_a_stock_forward_pass() -> None:
    """At the decoder's positions, whatever stands in other rows; entropies too."""
    rollout, model = fixed_rollout(6), policy_of(SIDED)
    logprobs, entropy = Policy(Actor(model, 0.7, ENDS, 2)).logprobs(rows_of(rollout))
    assert entropy is not None
    for i, prompt, reply in sides(rollout):
        logits = stock(model, prompt, reply).logits[0, :-1] / 0.7
        logits[:2, ENDS] = -torch.inf
        nats = logits.log_softmax(dim=-1)
        own = nats.gather(1, reply[0][:, None])[:, 0]
        torch.testing.assert_close(logprobs[i, : len(own)], own, **CLOSE)
        spread = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropy[i, : len(own)], spread, **CLOSE)
    assert float(nats[:, EXCLUDED].exp().sum()) == 0


@torch.no_grad()
def test_values_and_score_are_read_at_decoder_states() -> None:
    """Value t behind t tokens of the reply, the score behind all; as the lines of docs/models.md
    compute it from the folder, and as stage 2 trains it."""
    rollout, value = fixed_rollout(6), Value(ScalarModel(scalar_of(SIDED)))
    values, scores = value.values(rows_of(rollout)), value.score(rows_of(rollout))
    model, documented_score = scalar_of(SIDED), documented("decoder_score")
    lists = [(p[0].tolist(), r[0].tolist()) for _, p, r in sides(rollout)]
    for i, prompt, reply in sides(rollout):
        states = stock(super(type(model), model).forward, prompt, reply).last_hidden_state
        own = model.score(states)[0, :, 0] - 0.75
        torch.testing.assert_close(values[i, : reply.shape[1]], own[:-1], **CLOSE)
        torch.testing.assert_close(scores[i], own[-1], **CLOSE)
        found = documented_score(reward_folder(SIDED), *lists[i])
        assert found == pytest.approx(scores[i].item(), abs=1e-4)
    rated = [{"ids": p + r, "prompt_length": len(p), "score": 1.0} for p, r in lists]
    batch = collate(rated, PAD, start_id=PAD)
    del batch["targets"]
    torch.testing.assert_close(model(**batch).logits[:, 0] - 0.75, scores, **CLOSE)
    again = score_rows(value.module, [row["ids"] for row in rated], 4, LAUNCH, rated)
    assert again == pytest.approx(scores.tolist(), abs=1e-5)


@torch.no_grad()
def test_values_do_not_see_what_follows() -> None:
    """Another token in column t of the reply changes values behind it alone."""
    rollout, value = fixed_rollout(), Value(ScalarModel(scalar_of(SIDED)))
    before = value.values(rows_of(rollout))
    for t in range(1, 5):
        ids = rollout.ids.clone()
        ids[:, ids.shape[1] - 6 + t] = 41
        after = value.values(rows_of(replace(rollout, ids=ids)))
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.allclose(after[0, t + 1 :], before[0, t + 1 :])


def test_the_engine_samples_what_the_policy_says() -> None:
    """Its log-probs are the policy's; a row's reply hangs on its own prompt and numbers alone."""
    model = policy_of(SIDED)
    engine = HFEngine(model, Sampling(PAD, ENDS, 6, 0.7, min_new_tokens=1))
    drawn = uniforms(len(PROMPTS), 6, 0, "replies", 0)
    rollout = engine.generate(PROMPTS, drawn)
    with torch.no_grad():
        logprobs, entropy = Policy(Actor(model, 0.7, ENDS, 1)).logprobs(rows_of(rollout))
    mask = rollout.response_mask
    assert entropy is not None
    assert rollout.entropy is not None
    torch.testing.assert_close(logprobs[mask], rollout.logprobs[mask], **CLOSE)
    torch.testing.assert_close(entropy[mask], rollout.entropy[mask], **CLOSE)
    for i, prompt in enumerate(PROMPTS):
        alone = engine.generate([prompt], drawn[i : i + 1])
        assert alone.row(0) == rollout.row(i)
        assert rollout.row(i)[: len(prompt)] == prompt
    assert not set(rollout.response_ids[mask].tolist()) & set(EXCLUDED)


def test_micro_batches_change_nothing() -> None:
    """One row at a time, two or all, for actor and critic, encoder included."""
    whole = make_trainer(SIDED, **SGD)
    experience = experience_of(whole)
    for role in ("actor", "critic"):
        found = {
            size: gradients(make_trainer(SIDED, microbatch_size=size, **SGD), experience, role)[0]
            for size in (1, 8)
        }
        assert any("encoder" in name for name in found[8])
        for name, gradient in found[8].items():
            torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_ptx_rows_have_the_loss_of_stage_1() -> None:
    """Over a batch of replies of unequal length."""
    lists = [(p[0].tolist(), r[0].tolist()) for _, p, r in sides(fixed_rollout())]
    rows = [{"encoder_ids": p, "input_ids": p, "labels": r} for p, r in lists]
    model = policy_of(SIDED)
    ptx = PtxRows(rows, len(rows), PAD, 0, LAUNCH.device)
    ((batch,), tokens) = ptx.at(0, 0, 1, len(rows))
    logprobs, _ = Policy(Actor(model, 2.0)).logprobs(batch.rows, plain=True)
    batch_1 = collate_sft(rows, PAD, PAD)
    labels = batch_1["labels"]
    assert tokens == (labels >= 0).sum()
    loss = cross_entropy(model(**batch_1).logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(ptx_loss(logprobs, batch.trained, tokens), loss, **CLOSE)


def test_ppo_raises_a_reward() -> None:
    """In some updates replies hold more of the token that is asked for; the reference stays."""
    trainer = make_trainer(
        SIDED, CountReward(41), batch_size=32, minibatch_size=32, microbatch_size=32, epochs=2,
        kl_coef=0.0, missing_eos_penalty=0.0, actor_learning_rate=1e-2, critic_init="zero",
        critic_learning_rate=1e-2, updates=12,
    )  # fmt: skip
    prompts = [PROMPTS[i % 4] for i in range(32)]
    scores = [trainer.step(prompts)[1]["score"] for _ in range(12)]
    assert scores[-1] > scores[0] + 1
    first = AutoModelForSeq2SeqLM.from_pretrained(trainer.roles.actor.unwrapped.model.name_or_path)
    kept = trainer.roles.frozen_actor.model.state_dict()
    assert all(torch.equal(kept[name], w) for name, w in first.state_dict().items())
