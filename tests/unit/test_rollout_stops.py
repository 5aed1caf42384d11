"""Stop strings: replies, masks and `ended` end where the text does."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from _engines import ENGINES, engine, sample
from _models import EOS, LAUNCH, causal, make_trainer, ppo_config, sft_folder, toy_tokenizer
from _tokenizers import gpt2_like, llama_like
from torch import Tensor
from transformers import StopStringCriteria

from cores.errors import UserError
from cores.models import Actor, settle_pad_token
from cores.models.loading import exclude_from
from cores.rollout.engine import response_mask
from cores.rollout.graph import engine as graph
from cores.rollout.hf import TextStops
from cores.training.calibration import policy_engine
from cores.training.ppo import check_options

TEXTS = ["the", "er", " t", "。", "e w"]


@cache
def settled(make: Any) -> Any:
    """The tokenizer with a pad of its own."""
    tokenizer = copy.deepcopy(make())
    settle_pad_token(tokenizer, None)
    return tokenizer


def texts_engine(name: str, make: Any, texts: list[str], minimum: int = 0) -> Any:
    """An engine whose replies use a few dozen tokens, some of which make the texts; its model."""
    tokenizer = settled(make)
    model = causal("gpt2", rows=len(tokenizer))
    exclude_from(model, tokenizer)
    matcher = StopStringCriteria(tokenizer, texts)
    stops = [tokenizer.eos_token_id, *range(270, 274)]
    pad, more = tokenizer.pad_token_id, {"min_new_tokens": minimum, "text_matcher": matcher}
    return engine(name, model, 3.0, 24, pad_id=pad, stop_ids=stops, **more), model


def first_end(made: Any, tokenizer: Any, reply: list[int], texts: list[str]) -> int | None:
    """Length at which `reply` ends, by decoding ever longer beginnings of it; None: it does not.

    A text counts at the token with which one more of it is there, or one that ends later.
    """

    def ends(count: int) -> list[int]:
        text = tokenizer.decode(tokenizer.encode("x", add_special_tokens=False) + reply[:count])
        return [text.rfind(wanted) for wanted in texts]

    for count in range(made.sampling.min_new_tokens + 1, len(reply) + 1):
        if reply[count - 1] in made.sampling.stop_ids:
            return count
        if any(b > a for a, b in zip(ends(count - 1), ends(count), strict=True)):
            return count
    return None


@pytest.mark.parametrize("make", [gpt2_like, llama_like])
@pytest.mark.parametrize("minimum", [0, 4])
@pytest.mark.parametrize("name", ENGINES)
def test_replies_end_where_their_text_does(name: str, make: Any, minimum: int) -> None:
    """Invariant 16: over 200 random replies, of several lengths, each ends at the token that
    completes a stop string or is a stop id, whichever is first, as decoding the text says; the
    mask and `ended` agree. Invariant 1: log-probs are still the actor's."""
    tokenizer = settled(make)
    made, model = texts_engine(name, make, TEXTS, minimum)
    stops = made.sampling.stop_ids
    prompts = [tokenizer.encode(t) for t in ("Hello the", "A towel, please", "你好。", "er")]
    rollout = sample(made, prompts * 50)
    by_text = 0
    for i in range(200):
        reply = rollout.response_ids[i][rollout.response_mask[i]].tolist()
        end = first_end(made, tokenizer, reply, TEXTS)
        assert end == (len(reply) if rollout.ended[i] else None)
        assert rollout.ended[i] or len(reply) == 24
        by_text += bool(rollout.ended[i]) and reply[-1] not in stops
    assert by_text > 20
    assert rollout.lengths.min() > minimum
    assert len(set(rollout.lengths[rollout.ended].tolist())) > 5
    rest = rollout.response_ids[~rollout.response_mask]
    assert (rest == tokenizer.pad_token_id).all()  # nothing was sampled after the end
    actor = Actor(model, 3.0, stops, minimum)
    with torch.no_grad():
        logprobs, _ = actor(rollout.ids, rollout.mask, rollout.response_mask.shape[1])
    valid = rollout.response_mask
    torch.testing.assert_close(rollout.logprobs[valid], logprobs[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("minimum", [0, 4])
def test_texts_that_end_between_looks(minimum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 16: the graph engine looks for texts now and then, at every token since the last
    look: how often changes no reply, and nothing is left of the rollout before."""
    made, _ = texts_engine("graph", gpt2_like, TEXTS, minimum)
    tokenizer = settled(gpt2_like)
    prompts = [tokenizer.encode(t) for t in ("Hello the", "A towel, please", "er")] * 20
    found = []
    for look in (1, 2, 5, 16, 100):
        monkeypatch.setattr(graph, "LOOK", look)
        found.append(sample(made, prompts))
        sample(made, [prompts[0]] * 60, seed=1)  # other replies in the same buffers
    for rollout in found:
        assert torch.equal(rollout.ids, found[0].ids)
        assert torch.equal(rollout.ended, found[0].ended)
    assert len(set(found[0].lengths.tolist())) > 5


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
    actor, sampling = trainer.roles.actor.unwrapped, trainer.engine.sampling
    assert trainer.roles.frozen_actor is not None
    for policy in (actor, trainer.roles.frozen_actor, sampling):
        assert (list(policy.stop_ids), policy.min_new_tokens) == ([EOS, 9], 2)
    assert sampling.text_matcher is None
    assert not actor.entropy_grad
    assert make_trainer("gpt2", entropy_coef=0.1).roles.actor.unwrapped.entropy_grad
    config = ppo_config(min_new_tokens=2, stop_strings=["stop", "er"])
    made: Any = policy_engine(config, sft_folder("gpt2"), settled(gpt2_like), LAUNCH)
    made = made.sampling
    assert made.min_new_tokens == 2
    assert made.text_matcher is not None
    assert made.text_matcher.stop_strings == ("stop", "er")


def test_stop_strings_that_the_tokenizer_cannot_write() -> None:
    """Refused before any model is loaded, with the key."""
    check_options(ppo_config(stop_strings=["stop"]), settled(gpt2_like))
    with pytest.raises(UserError, match=r"ppo\.stop_strings: \['stop'\] cannot be found"):
        check_options(ppo_config(stop_strings=["stop"]), toy_tokenizer())
