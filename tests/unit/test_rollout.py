"""What both engines do: unfiltered sampling, log-probs as sampled, masks from positions."""

from typing import Any

import pytest
import torch
from _engines import BOTH, ENGINES, EVERY, STOPS, engine, numbers, replies, sample
from _models import EOS, EXCLUDED, PAD, PROMPTS, ROWS, causal, policy_of
from _tokenizers import chat_like, gpt2_like, llama_like
from torch import Tensor
from transformers import GenerationConfig

from cores.models import Actor, settle_pad_token
from cores.models.loading import exclude_from
from cores.models.vocabulary import fit_vocabulary
from cores.rollout.engine import response_mask

HOSTILE: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.3,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.01,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 5,
    "min_length": 20,
    "suppress_tokens": [20, 21, 22],
    "begin_suppress_tokens": [23, 24],
    "bad_words_ids": [[25], [26, 27]],
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": (1, 5.0),
    "guidance_scale": 3.0,
    "eos_token_id": [30, 31],
    "pad_token_id": 33,
    "max_new_tokens": 3,
    "max_length": 4,
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "renormalize_logits": True,
    "use_cache": False,
}
"""A parent's generation config that would spoil everything."""


def chi_square(counts: Tensor, probs: Tensor) -> tuple[float, int]:
    """Pearson's statistic of counts (V,) against probs (V,), rare ids in one bin, and its bins."""
    expected = probs * counts.sum()
    rare = expected < 5
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]]).clamp(min=1e-9)
    return ((seen - wanted).square() / wanted).sum().item(), len(seen)


@pytest.mark.parametrize(("name", "kind"), EVERY)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
def test_recorded_logprobs_are_teacher_forced_ones(
    name: str, kind: str, temperature: float
) -> None:
    """Invariants 1, 2: what the engine records while sampling (left-padded, with a cache) = the
    actor's log-probs of the same ids in one pass, at the same temperature."""
    model = policy_of(kind)
    rollout = sample(engine(name, model, temperature), PROMPTS * 4)
    with torch.no_grad():
        width = rollout.response_mask.shape[1]
        logprobs, _ = Actor(model, temperature)(rollout.ids, rollout.mask, width)
    valid = rollout.response_mask
    assert len(set(rollout.lengths.tolist())) > 2  # replies of several lengths were compared
    torch.testing.assert_close(rollout.logprobs[valid], logprobs[valid], atol=1e-5, rtol=1e-5)
    assert (rollout.logprobs[~valid] == 0).all()
    assert (rollout.logprobs[valid] < 0).all()


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_bf16_logprobs_stay_close(name: str, kind: str) -> None:
    """Invariant 1: under bfloat16 autocast, which the engine shares with the trainer, recorded and
    teacher-forced log-probs differ by rounding only."""
    model = policy_of(kind)
    rollout = sample(engine(name, model, autocast=torch.bfloat16), PROMPTS * 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        width = rollout.response_mask.shape[1]
        logprobs, _ = Actor(model, 1.0)(rollout.ids, rollout.mask, width)
    with torch.no_grad():
        exact, _ = Actor(model, 1.0)(rollout.ids, rollout.mask, width)
    assert logprobs.dtype == rollout.logprobs.dtype == torch.float32
    valid = rollout.response_mask
    assert (exact - rollout.logprobs)[valid].abs().max() > 0  # bfloat16 it was
    gap = (logprobs - rollout.logprobs)[valid].abs()
    assert gap.max() < 0.3
    assert gap.mean() < 0.05


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_the_parents_generation_config_changes_nothing(name: str, kind: str) -> None:
    """Invariant 3: top-k, penalties, minimum length, suppressed tokens and their like in the
    checkpoint's generation config neither reach the samples nor get lost."""
    model = policy_of(kind)
    expected = sample(engine(name, model), PROMPTS * 4)
    theirs = GenerationConfig(**HOSTILE)
    model.generation_config = theirs
    rollout = sample(engine(name, model), PROMPTS * 4)
    assert torch.equal(rollout.ids, expected.ids)
    assert torch.equal(rollout.logprobs, expected.logprobs)
    assert model.generation_config is theirs


@pytest.mark.parametrize(("name", "kind"), BOTH)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 3.0])
def test_sampling_is_unfiltered(name: str, kind: str, temperature: float) -> None:
    """Invariants 2, 3: 6000 first tokens have the frequencies of softmax(logits / temperature)
    over the allowed ids (chi-squared, five standard deviations); none is excluded."""
    model = policy_of(kind)
    model.generation_config = GenerationConfig(do_sample=True, top_k=5, top_p=0.8)
    rollout = sample(engine(name, model, temperature, tokens=1), [[5, 9, 13]] * 6000)
    counts = torch.bincount(rollout.response_ids.flatten(), minlength=ROWS).float()
    logits = causal(kind)(torch.tensor([[5, 9, 13]])).logits[0, -1].detach() / temperature
    logits[EXCLUDED] = -torch.inf
    statistic, bins = chi_square(counts, logits.softmax(dim=0))
    assert bins > 10
    assert statistic < bins - 1 + 5 * (2 * (bins - 1)) ** 0.5
    assert (counts[EXCLUDED] == 0).all()


@pytest.mark.parametrize("name", ENGINES)
def test_every_allowed_id_is_reachable_and_no_other(name: str) -> None:
    """Invariant 3: with a nearly uniform policy all 59 ids occur, more than any default top-k; the
    excluded never do, although the bare head prefers them."""
    model = policy_of("llama")
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.mul_(0.05)
        head[EXCLUDED] = 50 * head[EXCLUDED].sign()
    rollout = sample(engine(name, model, stop_ids=[EOS], tokens=4), [[5, 9]] * 500)
    seen = set(rollout.response_ids[rollout.response_mask].tolist())
    assert seen == set(range(ROWS)) - set(EXCLUDED)


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_rollout_layout(name: str, kind: str) -> None:
    """Invariants 4, 16: prompts end where responses begin; each row is its prompt and its reply up
    to and including the first stop token; nothing is attended after it."""
    rollout = sample(engine(name, policy_of(kind), stop_ids=STOPS[:3]), PROMPTS * 8)
    left = max(map(len, PROMPTS))
    assert rollout.ids.shape[1] == left + rollout.response_mask.shape[1]
    assert torch.equal(rollout.mask[:, left:], rollout.response_mask)
    assert torch.equal(rollout.response_ids, rollout.ids[:, left:])
    for i, prompt in enumerate(PROMPTS * 8):
        row = rollout.row(i)
        reply = row[len(prompt) :]
        assert row[: len(prompt)] == prompt
        assert len(reply) == rollout.lengths[i].item() >= 1
        assert not set(reply[:-1]) & set(STOPS[:3])
        assert bool(rollout.ended[i]) == (reply[-1] in STOPS[:3])
        assert bool(rollout.ended[i]) or len(reply) == 8
    assert rollout.ended.any()
    assert not rollout.ended.all()
    assert (rollout.response_ids[~rollout.response_mask] == PAD).all()  # nothing sampled after
    short = sample(engine(name, policy_of(kind), stop_ids=list(range(1, 60))), PROMPTS)
    assert short.response_ids.shape == (4, 1)  # no step is taken once all have ended


@pytest.mark.parametrize("name", ENGINES)
def test_stop_ids_are_the_engines_own(name: str) -> None:
    """Invariant 16: custom stop ids end a reply; eos of the model's config does not unless it is
    among them; eos as the first token is a reply of one token."""
    model = policy_of("gpt2")
    prompts = [[5, 9]] * 200
    free = sample(engine(name, model, stop_ids=[59], tokens=4), prompts)
    assert (free.response_ids[:, :3] == EOS).any()
    assert torch.equal(free.ended, (free.response_ids == 59).any(dim=1))
    stopped = sample(engine(name, model, stop_ids=[EOS, 59], tokens=4), prompts)
    first = stopped.response_ids[:, 0] == EOS
    assert first.any()
    assert (stopped.lengths[first] == 1).all()
    assert stopped.ended[first].all()


def test_response_mask_by_hand() -> None:
    """Invariant 16: up to and including the first stop; ids equal to pad before it count; none at
    all means every token; eos first is one token."""
    stops = torch.tensor([1, 7])
    ids = torch.tensor([[4, 0, 1, 0], [1, 1, 4, 4], [4, 5, 6, 8], [4, 7, 1, 0], [4, 4, 4, 1]])
    mask, ended = response_mask(ids, stops)
    assert mask.int().tolist() == [
        [1, 1, 1, 0],
        [1, 0, 0, 0],
        [1, 1, 1, 1],
        [1, 1, 0, 0],
        [1, 1, 1, 1],
    ]
    assert ended.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_replies_do_not_depend_on_padding(name: str, kind: str) -> None:
    """Invariant 4: a greedy-cold reply is the same alone and beside longer prompts."""
    made = engine(name, policy_of(kind), temperature=1e-3)
    together = sample(made, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        assert sample(made, [prompt]).row(0) == together.row(i)


@pytest.mark.parametrize("make", [gpt2_like, chat_like, llama_like])
@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_settled_tokenizers_roll_out(name: str, kind: str, make: Any) -> None:
    """Invariants 1, 8: a tokenizer whose pad was eos, and those with their own: pad is never
    sampled, eos is, and recorded log-probs are the actor's."""
    import copy

    tokenizer = copy.deepcopy(make())
    model = causal(kind, rows=len(tokenizer) + (0 if make is gpt2_like else 5))
    settle_pad_token(tokenizer, None)
    fit_vocabulary(model, tokenizer)
    excluded = exclude_from(model, tokenizer)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    stops = [eos, *range(100, 200)]
    prompts = [tokenizer.encode(text) for text in ("Hello", "A towel, please", "你好")]
    rollout = sample(engine(name, model, pad_id=pad, stop_ids=stops), prompts * 4)
    width = rollout.response_mask.shape[1]
    with torch.no_grad():
        logprobs, _ = Actor(model, 1.0)(rollout.ids, rollout.mask, width)
    valid = rollout.response_mask
    torch.testing.assert_close(rollout.logprobs[valid], logprobs[valid], atol=1e-5, rtol=1e-5)
    assert not set(rollout.response_ids[valid].tolist()) & set(excluded)
    assert int(rollout.ids.max()) < model.config.vocab_size


@pytest.mark.parametrize("name", ENGINES)
def test_dropout_and_the_mode(name: str) -> None:
    """Invariant 7: dropout is off while sampling even for a model in train mode, which it is again
    afterwards."""
    model = policy_of("gpt2", dropout=True)
    model.train()
    made = engine(name, model)
    rollout = sample(made, PROMPTS)
    assert model.training
    with torch.no_grad():
        model.eval()
        logprobs, _ = Actor(model, 1.0)(rollout.ids, rollout.mask, rollout.logprobs.shape[1])
    valid = rollout.response_mask
    torch.testing.assert_close(rollout.logprobs[valid], logprobs[valid], atol=1e-5, rtol=1e-5)
    sample(made, PROMPTS)
    assert not model.training


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_replies_are_of_their_own_numbers(name: str, kind: str) -> None:
    """Invariants 4, 31: whoever seeds torch in between changes none and finds its generator where
    it was; a row alone, and rows shared out over two processes, say what they say together."""
    model, prompts = policy_of(kind), PROMPTS * 3
    made = engine(name, model, temperature=1.4)
    every = replies(sample(made, prompts))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert replies(sample(made, prompts)) == every
    assert torch.equal(torch.random.get_rng_state(), before)
    for size in (1, 6):
        for first in range(0, 12, size):
            own = made.generate(prompts[first : first + size], numbers(made, size, first=first))
            assert replies(own) == every[first : first + size]
    assert len({tuple(row) for row in every}) == 12
    assert replies(sample(made, prompts, seed=1)) != every


@pytest.mark.parametrize("name", ENGINES)
def test_number_t_decides_token_t(name: str) -> None:
    """Invariant 31: another number changes its own token and what follows, nothing before and
    nothing of another row; numbers beyond the longest reply are not read."""
    made = engine(name, policy_of("gpt2"), temperature=3.0, stop_ids=[EOS])
    given = numbers(made, 4)
    first = made.generate(PROMPTS, torch.cat([given, torch.full((4, 3), torch.nan)], dim=1))
    assert first.response_mask.all()
    given[2, 3] = (given[2, 3] + 0.5) % 1
    other = made.generate(PROMPTS, given)
    same = first.response_ids == other.response_ids
    assert same[[0, 1, 3]].all()
    assert same[2].tolist()[:4] == [True, True, True, False]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_policy_gone_bad(name: str, broken: float) -> None:
    """Weights that are not finite give replies whose log-probs say so, of ids that there are."""
    model = policy_of("gpt2")
    with torch.no_grad():
        model.base_model.ln_f.weight.fill_(broken)
    rollout = sample(engine(name, model), PROMPTS)
    assert rollout.logprobs[rollout.response_mask].isnan().all()
    assert (rollout.ids < ROWS).all()
