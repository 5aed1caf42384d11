"""Minimum length and stop strings: the same in sampling and in every log-prob, masks that end where
the reply does. And the entropy as a term of the loss."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from _models import (
    EOS,
    KINDS,
    LAUNCH,
    LORA,
    PROMPTS,
    causal,
    fixed_rollout,
    make_trainer,
    parameters,
    policy_of,
    ppo_config,
    sft_folder,
    toy_tokenizer,
)
from _tokenizers import gpt2_like, llama_like
from torch import Tensor
from transformers import StopStringCriteria

from cores.errors import UserError
from cores.models import Actor, settle_pad_token, token_logprobs
from cores.models.loading import exclude_from
from cores.ppo.run import check_options
from cores.rollout import HFEngine, Rollout, TextStops, response_mask
from cores.training.calibration import policy_engine

STOPS = [EOS, *range(2, 30)]
"""Half the vocabulary, so that few replies would reach the minimum by themselves."""
TEXTS = ["the", "er", " t", "。", "e w"]


def actor_of(model: Any, minimum: int, temperature: float = 1.0, **more: Any) -> Actor:
    return Actor(model, temperature, STOPS, minimum, **more)


def sampled(model: Any, minimum: int, temperature: float = 1.0) -> Rollout:
    torch.manual_seed(0)
    made = HFEngine(model, 0, STOPS, 8, temperature, min_new_tokens=minimum)
    return made.generate(PROMPTS * 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("minimum", [1, 3])
@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_recorded_logprobs_know_the_minimum_length(
    kind: str, minimum: int, temperature: float
) -> None:
    """Invariants 1, 2, 3: no stop id in the first `minimum` tokens, the very next token can be one,
    and recorded log-probs are the actor's, whose probabilities there sum to 1 without stops."""
    model = policy_of(kind)
    rollout = sampled(model, minimum, temperature)
    valid, width = rollout.response_mask, rollout.response_mask.shape[1]
    with torch.no_grad():
        inputs = (rollout.ids, rollout.mask, width)
        logprobs, entropy = actor_of(model, minimum, temperature)(*inputs)
        free, _ = Actor(model, temperature)(*inputs)
    torch.testing.assert_close(rollout.logprobs[valid], logprobs[valid], atol=1e-5, rtol=1e-5)
    stops = torch.isin(rollout.response_ids, torch.tensor(STOPS))
    assert not stops[:, :minimum].any()
    assert rollout.lengths.min() == minimum + 1
    assert len(set(rollout.lengths.tolist())) > 2
    assert (logprobs - free)[:, :minimum].min() > 1e-3  # what stops gave up went to the others
    torch.testing.assert_close(logprobs[:, minimum:], free[:, minimum:])
    assert torch.isfinite(entropy).all()
    assert (entropy >= 0).all()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_role_knows_the_minimum_length(kind: str, lora: bool) -> None:
    """Invariants 3, 9, 10: at the start the log-probs of rollout, actor and reference are the same
    (KL 0), with a frozen reference and with adapters; a stop id is impossible to all of them. One
    update later the weights are finite."""
    options: dict[str, Any] = {"lora": LORA} if lora else {}
    trainer = make_trainer(
        kind, min_new_tokens=3, stop_token_ids=STOPS[1:], entropy_coef=0.1, **options
    )
    torch.manual_seed(0)
    rollout = trainer.rollout(PROMPTS)
    scored = trainer.score(rollout)
    valid = scored.response_mask
    assert valid[:, :4].all()
    torch.testing.assert_close(scored.logprobs[valid], rollout.logprobs[valid], atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.ref_logprobs[valid], scored.logprobs[valid])
    made = fixed_rollout()  # replies of eos at any place, and of stop ids everywhere
    early = torch.isin(made.response_ids, torch.tensor(STOPS))[:, :3] & made.response_mask[:, :3]
    scored = trainer.score(made)
    assert early.any()
    assert (scored.logprobs[:, :3][early] < -5000).all()
    assert (scored.ref_logprobs[:, :3][early] < -5000).all()
    assert (scored.ref_logprobs[:, 3:][made.response_mask[:, 3:]] > -500).all()
    trainer.step(PROMPTS)
    assert all(torch.isfinite(p).all() for p in parameters(trainer.roles.actor.module).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entropy_grad", [False, True])
def test_gradients_of_masked_logprobs_are_finite(kind: str, entropy_grad: bool) -> None:
    """Invariants 3, 23: no NaN through the mask, even at a stop id chosen where it is impossible;
    and impossible logits have no gradient."""
    model = policy_of(kind)
    made = fixed_rollout()
    actor = actor_of(model, 3, entropy_grad=entropy_grad)
    logprobs, entropy = actor(made.ids, made.mask, 6)
    loss = logprobs.sum() - (1e3 * entropy.sum() if entropy_grad else 0.0)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert max(g.abs().max() for g in gradients) > 0

    logits = torch.randn(2, 4, 40, requires_grad=True)
    ids = torch.full((2, 4), 35)
    logprobs, entropy = token_logprobs(logits, ids, 0.5, [1, 2, 3], 2, entropy_grad=True)
    (logprobs.sum() + entropy.sum()).backward()
    assert logits.grad is not None
    assert (logits.grad[:, :2, [1, 2, 3]] == 0).all()
    assert (logits.grad[:, 2:, [1, 2, 3]] != 0).all()
    assert (logits.grad[:, :2, 4:] != 0).all()


def test_a_masked_distribution_by_hand() -> None:
    """Invariant 3: probabilities (1/2, 1/4, 1/4), the first forbidden in the first position only:
    (0, 1/2, 1/2), entropy ln 2; then as they are, entropy 1.5 ln 2. The temperature comes in too:
    at 2 the others stay even. The caller's logits are not touched."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(1, 2, 3).clone()
    before, ids = logits.clone(), torch.tensor([[1, 1]])
    logprobs, entropy = token_logprobs(logits, ids, 1.0, [0], 1)
    ln2 = torch.tensor(2.0).log().item()
    torch.testing.assert_close(logprobs, torch.tensor([[-ln2, -2 * ln2]]))
    torch.testing.assert_close(entropy, torch.tensor([[ln2, 1.5 * ln2]]))
    warm, _ = token_logprobs(logits, ids, 2.0, [0], 1)
    assert warm[0, 0].item() == pytest.approx(-ln2, abs=1e-6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("minimum", [0, 2])
def test_entropy_gradient(minimum: int) -> None:
    """Invariant 24: with `entropy_grad` the same value, bit for bit, and the gradient by hand
    -p (log p + H) / temperature; without it, and under no_grad, none."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 7, dtype=torch.float32).mul(3).requires_grad_()
    ids, temperature = torch.randint(0, 7, (2, 3)), 0.7
    _, plain = token_logprobs(logits, ids, temperature, [0, 4], minimum)
    _, entropy = token_logprobs(logits, ids, temperature, [0, 4], minimum, entropy_grad=True)
    assert not plain.requires_grad
    assert torch.equal(plain, entropy)
    weights = torch.randn(2, 3)
    (entropy * weights).sum().backward()
    with torch.no_grad():
        allowed = torch.ones(2, 3, 7, dtype=torch.bool)
        allowed[:, :minimum, [0, 4]] = False
        logp = (logits / temperature).masked_fill(~allowed, -torch.inf).log_softmax(dim=-1)
        p = logp.exp()
        plogp = torch.where(allowed, p * logp, 0.0)
        h = -plogp.sum(dim=-1, keepdim=True)
        expected = -(plogp + p * h) / temperature * weights.unsqueeze(-1)
        torch.testing.assert_close(entropy, h.squeeze(-1))
        torch.testing.assert_close(logits.grad, expected, atol=1e-5, rtol=1e-5)
        _, outside = token_logprobs(logits, ids, temperature, entropy_grad=True)
    assert not outside.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_plain_logprobs_are_the_language_models(kind: str) -> None:
    """`plain` is temperature 1 and no minimum length, whatever the actor samples with."""
    model, made = policy_of(kind), fixed_rollout()
    actor = actor_of(model, 3, temperature=1.7, entropy_grad=True)
    found, entropy = actor(made.ids, made.mask, 6, plain=True)
    expected, same = Actor(model, 1.0)(made.ids, made.mask, 6)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropy, same)
    assert found.requires_grad
    assert not entropy.requires_grad


@cache
def settled(make: Any) -> Any:
    """The tokenizer with a pad of its own."""
    tokenizer = copy.deepcopy(make())
    settle_pad_token(tokenizer, None)
    return tokenizer


def texts_engine(kind: str, make: Any, texts: list[str], minimum: int = 0) -> HFEngine:
    """An engine whose replies use a few dozen tokens, some of which make the texts."""
    tokenizer = settled(make)
    model = causal(kind, rows=len(tokenizer))
    exclude_from(model, tokenizer)
    matcher = StopStringCriteria(tokenizer, texts)
    stops = [tokenizer.eos_token_id, *range(270, 274)]
    pad = tokenizer.pad_token_id
    return HFEngine(model, pad, stops, 24, 3.0, min_new_tokens=minimum, text_matcher=matcher)


def first_end(made: HFEngine, tokenizer: Any, reply: list[int], texts: list[str]) -> int | None:
    """Length at which `reply` ends, by decoding ever longer beginnings of it; None: it does not.

    A text counts at the token with which one more of it is there, or one that ends later.
    """

    def ends(count: int) -> list[int]:
        text = tokenizer.decode(tokenizer.encode("x", add_special_tokens=False) + reply[:count])
        return [text.rfind(wanted) for wanted in texts]

    for count in range(made.min_new_tokens + 1, len(reply) + 1):
        if reply[count - 1] in made.stop_ids:
            return count
        if any(b > a for a, b in zip(ends(count - 1), ends(count), strict=True)):
            return count
    return None


@pytest.mark.parametrize("make", [gpt2_like, llama_like])
@pytest.mark.parametrize("minimum", [0, 4])
def test_replies_end_where_their_text_does(make: Any, minimum: int) -> None:
    """Invariant 16: over 200 random replies, of several lengths, each ends at the token that
    completes a stop string or is a stop id, whichever is first, as decoding the text says; the
    mask and `ended` agree. Invariant 1: log-probs are still the actor's."""
    tokenizer = settled(make)
    made = texts_engine("gpt2", make, TEXTS, minimum)
    prompts = [tokenizer.encode(t) for t in ("Hello the", "A towel, please", "你好。", "er")]
    torch.manual_seed(0)
    rollout = made.generate(prompts * 50)
    by_text = 0
    for i in range(200):
        reply = rollout.response_ids[i][rollout.response_mask[i]].tolist()
        end = first_end(made, tokenizer, reply, TEXTS)
        assert end == (len(reply) if rollout.ended[i] else None)
        assert rollout.ended[i] or len(reply) == 24
        by_text += bool(rollout.ended[i]) and reply[-1] not in made.stop_ids
    assert by_text > 20
    assert rollout.lengths.min() > minimum
    assert len(set(rollout.lengths[rollout.ended].tolist())) > 5
    rest = rollout.response_ids[~rollout.response_mask]
    assert (rest == tokenizer.pad_token_id).all()  # nothing was sampled after the end
    actor = Actor(made.model, made.temperature, made.stop_ids, minimum)
    with torch.no_grad():
        logprobs, _ = actor(rollout.ids, rollout.mask, rollout.response_mask.shape[1])
    valid = rollout.response_mask
    torch.testing.assert_close(rollout.logprobs[valid], logprobs[valid], atol=1e-5, rtol=1e-5)


def scripted(replies: list[list[int]], prompt: list[int], minimum: int) -> Tensor:
    """(B, T): what `TextStops` says as rows of one length come token by token; the stop strings
    are "stop" and two line ends."""
    tokenizer = settled(gpt2_like)
    matcher = StopStringCriteria(tokenizer, ["stop", "\n\n"])
    texts = TextStops(matcher, len(prompt), minimum)
    rows = torch.tensor([prompt + reply for reply in replies])
    for end in range(len(prompt) + 1, rows.shape[1] + 1):
        texts(rows[:, :end], None)
    return torch.stack(texts.met, dim=1)


def letters(text: str) -> list[int]:
    """One token a byte."""
    vocabulary = settled(gpt2_like).get_vocab()
    return [vocabulary[{" ": "Ġ", "\n": "Ċ"}.get(c, c)] for c in text]


def test_stop_strings_by_hand() -> None:
    """Invariant 16: over several tokens, the mask ends with the one that completes the text; rows
    end at different steps; a stop id before the text ends the row first."""
    texts = ("a stop b", "stop\n\nxx", "no\n\nstop", "nothing.", "1sto p.\n")
    replies = [letters(text) for text in texts]
    met = scripted(replies, letters("Q: "), 0)
    full = settled(gpt2_like).eos_token_id
    ids = torch.tensor(replies)
    ids[0, 1] = full  # eos before the text
    mask, ended = response_mask(ids, torch.tensor([full]), met)
    assert mask.sum(dim=1).tolist() == [2, 4, 4, 8, 8]
    assert ended.tolist() == [True, True, True, False, False]


def test_a_stop_string_in_the_prompt_ends_nothing() -> None:
    """The text of the reply alone counts: neither a string in the prompt, right before the reply,
    nor one that begins in the prompt."""
    met = scripted([letters("abcd"), letters("\nabc")], letters("stop\n\n"), 0)
    assert not met.any()
    met = scripted([letters("opab")], letters("xxst"), 0)
    assert not met.any()
    met = scripted([letters("\n\nab")], letters("xx\n\n"), 0)
    assert met.tolist() == [[False, True, False, False]]


def test_a_stop_string_within_the_minimum_length_ends_nothing() -> None:
    """None of the first `min_new_tokens` tokens ends a reply; the next text does."""
    reply = [letters("stopstop")]
    for minimum, at in ((3, 3), (4, 7), (7, 7), (8, None)):
        met = scripted(reply, letters("Q"), minimum)
        assert met.nonzero()[:, 1].tolist()[:1] == ([] if at is None else [at])


def test_options_reach_the_engines() -> None:
    """Invariants 3, 12: stage 3 and the calibration of stage 2 sample with both options."""
    trainer = make_trainer("gpt2", min_new_tokens=2, stop_token_ids=[9])
    actor, engine = trainer.roles.actor.unwrapped, trainer.engine
    assert trainer.roles.frozen_actor is not None
    for policy in (actor, trainer.roles.frozen_actor, engine):
        assert (list(policy.stop_ids), policy.min_new_tokens) == ([EOS, 9], 2)
    assert engine.text_matcher is None
    assert not actor.entropy_grad
    assert make_trainer("gpt2", entropy_coef=0.1).roles.actor.unwrapped.entropy_grad
    config = ppo_config(min_new_tokens=2, stop_strings=["stop", "er"])
    made = policy_engine(config, sft_folder("gpt2"), settled(gpt2_like), LAUNCH)
    assert made.min_new_tokens == 2
    assert made.text_matcher is not None
    assert made.text_matcher.stop_strings == ("stop", "er")


def test_stop_strings_that_the_tokenizer_cannot_write() -> None:
    """Refused before any model is loaded, with the key."""
    check_options(ppo_config(stop_strings=["stop"]), settled(gpt2_like))
    with pytest.raises(UserError, match=r"ppo\.stop_strings: \['stop'\] cannot be found"):
        check_options(ppo_config(stop_strings=["stop"]), toy_tokenizer())
