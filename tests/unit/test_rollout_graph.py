"""The engine with the static cache: the same replies as by `generate`, however rows are moved,
filled up and captured. On a CPU `as_on_cuda` stands in for graphs and kernels."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from _engines import CAPTURABLE, ENGINES, STOPS, as_on_cuda, engine, replies, sample
from _models import PAD, PROMPTS, WORDS, causal, policy_of, toy_tokenizer
from torch import Tensor

from cores.models import Actor
from cores.models.loading import exclude_from
from cores.rollout import Rollout
from cores.rollout.build import graph_problem
from cores.rollout.graph import engine as graph
from cores.rollout.graph.buffers import Steps
from cores.rollout.graph.engine import bucket

MANY = [[2 + (7 * i + j) % 50 for j in range(1 + i % 6)] for i in range(32)]
"""32 prompts of one to six tokens."""
LONG: dict[str, Any] = {"factor": 2.0, "original_max_position_embeddings": 8}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"factor": 2.0}),
    "yarn": ("llama", LONG),
    "llama3": ("llama", {**LONG, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "mistral": ("mistral", {}),
    "wide heads": ("llama", {"head_dim": 12}),
    "scale of each layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "no scale": ("gpt2", {"scale_attn_weights": False}),
}
"""Configurations beside those of the families; of the first three the rotary embedding's."""


def assert_same(found: Rollout, expected: Rollout) -> None:
    """The same replies in the same order; log-probs and entropies but for rounding."""
    assert replies(found) == replies(expected)
    assert torch.equal(found.ended, expected.ended)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-5, rtol=1e-5)


def judged(model: Any, rollout: Rollout, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The actor's log-probs and entropies of a rollout."""
    with torch.no_grad():
        logprobs, entropy = Actor(model, temperature)(
            rollout.ids, rollout.mask, rollout.response_mask.shape[1]
        )
    assert entropy is not None
    return logprobs, entropy


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Looks every second token; the numbers of rows that were kept."""
    monkeypatch.setattr(graph, "LOOK", 2)
    rows: list[int] = []
    keep = Steps.keep

    def noted(steps: Steps, count: int) -> None:
        rows.append(count)
        keep(steps, count)

    monkeypatch.setattr(Steps, "keep", noted)
    return rows


@pytest.mark.parametrize("kind", CAPTURABLE)
@pytest.mark.parametrize("temperature", [1e-6, 1.3])
def test_replies_are_those_of_generate(kind: str, temperature: float, kept: list[int]) -> None:
    """Invariants 1, 4, 24: both engines say the same by the same numbers, greedily or not, of
    prompts of several lengths, some of which end early; so do log-probs and entropies."""
    made = [engine(name, policy_of(kind), temperature, tokens=20) for name in ("hf", "graph")]
    expected, found = (sample(m, MANY) for m in made)
    if temperature > 1:
        assert_same(found, expected)
    assert replies(found) == replies(expected)
    assert torch.equal(found.ended, expected.ended)
    assert len(set(found.lengths.tolist())) > 2
    assert kept


@pytest.mark.parametrize("other", OTHERS)
def test_other_configurations(other: str) -> None:
    """Rotary embeddings whose angles are scaled but stay the same, on positions beyond those it was
    trained for; heads of another width than the layer's share; scores scaled otherwise."""
    kind, changes = OTHERS[other]
    if other in ("linear", "yarn", "llama3"):
        changes = {"rope_parameters": {"rope_type": other, "rope_theta": 1e4, **changes}}
    model = causal(kind, **changes)
    exclude_from(model, toy_tokenizer())
    assert graph_problem(model) is None
    made = [engine(name, model, 1e-6, tokens=20, stop_ids=[WORDS]) for name in ("hf", "graph")]
    expected, found = (sample(m, PROMPTS) for m in made)
    assert replies(found) == replies(expected)
    assert found.lengths.tolist() == [20] * 4
    logprobs, _ = judged(model, warm := sample(engine("graph", model), PROMPTS))
    valid = warm.response_mask
    torch.testing.assert_close(warm.logprobs[valid], logprobs[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CAPTURABLE)
@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_logprobs_and_entropies_are_the_actors(
    kind: str, temperature: float, kept: list[int]
) -> None:
    """Invariants 1, 2, 24: while rows make room several times, in fp32."""
    model = policy_of(kind)
    rollout = sample(engine("graph", model, temperature, tokens=12), MANY)
    logprobs, entropy = judged(model, rollout, temperature)
    valid = rollout.response_mask
    assert rollout.entropy is not None
    assert rollout.entropy.shape == rollout.logprobs.shape
    torch.testing.assert_close(rollout.logprobs[valid], logprobs[valid], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rollout.entropy[valid], entropy[valid], atol=1e-5, rtol=1e-5)
    assert (rollout.entropy[~valid] == 0).all()
    assert len(kept) > 2
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rows_that_make_room_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 4: with a look every 1 to 5 tokens replies and their order are those without."""
    made = engine("graph", policy_of(kind), tokens=17, stop_ids=STOPS[:3])
    monkeypatch.setattr(graph, "LOOK", 100)
    expected = sample(made, MANY)
    assert not expected.ended.all()
    for look in (1, 2, 3, 5):
        monkeypatch.setattr(graph, "LOOK", look)
        assert_same(sample(made, MANY), expected)


@pytest.mark.parametrize("ends", [1, 2])
def test_no_step_is_taken_once_all_have_ended(ends: int, kept: list[int]) -> None:
    """Replies of one token, and of two, the last that the first look sees."""
    stops = list(range(ends, WORDS))  # of two: only eos is left for the first token
    made = engine("graph", policy_of("gpt2"), 1e-6, 16, stop_ids=stops, min_new_tokens=ends - 1)
    rollout = sample(made, PROMPTS)
    assert rollout.lengths.tolist() == [ends] * 4
    assert (made.steps.place % 16 == 2).all()
    assert kept == []


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "qwen3"])
def test_buckets_graphs_and_kernels_change_nothing(
    kind: str, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants 4, 31: filled up to a bucket, captured and replayed, the replies of a seed are
    those of plain steps. A second rollout needs no new graph; one with longer prompts does."""
    monkeypatch.setattr(graph, "BUCKETS", (2, 4, 6, 12, 16, 24))
    plain = engine("graph", policy_of(kind), tokens=12)
    made = engine("graph", policy_of(kind), tokens=12)
    graphs = as_on_cuda(made, monkeypatch)
    for seed in range(4):
        prompts = MANY[seed : 21 + seed % 2]
        assert_same(sample(made, prompts, seed), sample(plain, prompts, seed))
    assert made.steps.cache.rows == 24
    assert set(kept) & {2, 4, 6, 12, 16}
    assert len(made.graphs) > 2
    assert len(graphs) == len(made.graphs) + len(made.prefills.graphs)
    assert all(each.replays > 0 for each in graphs)
    longer = [*MANY[:4], [9] * 60]
    assert_same(sample(made, longer), sample(plain, longer))
    assert made.steps.cache.positions == 128
    assert len(graphs) > len(made.graphs)  # those of the smaller buffers are gone


def test_replies_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefill samples it: there is no step to capture, and none is taken for a capture."""
    plain, made = (engine("graph", policy_of("gpt2"), tokens=1) for _ in range(2))
    as_on_cuda(made, monkeypatch)
    assert_same(sample(made, MANY), sample(plain, MANY))
    assert not made.graphs


@pytest.mark.parametrize("tokens", [24, 1000])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_captured_prefills(kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 4, 29: shapes that come again are read by graphs, whole or in parts, padded or
    not: of prompts of several lengths one graph, of the next multiple of 16; the replies and their
    prompts are those of plain steps."""
    monkeypatch.setattr(graph, "PREFILL_TOKENS", tokens)
    made, plain = (engine("graph", policy_of(kind)) for _ in range(2))
    as_on_cuda(made, monkeypatch)
    shapes = []
    read = made._read
    made._read = lambda cache, first, inputs: shapes.append(inputs) or read(cache, first, inputs)
    even = [[5, 9, 13, 2], [7, 8, 9, 10], [20, 3, 4, 5]]
    for prompts in ([MANY[:4], MANY[6:11], MANY[3:8], MANY[1:7]], [even, even[::-1]] * 2):
        for chosen in prompts:
            found, expected = sample(made, chosen), sample(plain, chosen)
            assert_same(found, expected)
            assert torch.equal(found.mask, expected.mask)
    assert {(x["ids"].shape[1], "mask" in x) for x in shapes} == {(16, True), (4, False)}
    parts = {16: 8, 4: 2} if tokens == 24 else {16: 1, 4: 1}
    assert len(made.prefills.graphs) == sum(parts.values())


def test_large_buffers_are_lent_to_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a rollout whose cache is larger than what is kept there are no buffers, graphs and
    rounded weights; the next one makes them anew."""
    made = engine("graph", policy_of("llama"), autocast=torch.bfloat16)
    as_on_cuda(made, monkeypatch)
    expected = sample(made, MANY)
    for keeps, there in ((1e9, True), (1.0, False), (1.0, False), (1e9, True)):
        made.keeps = keeps
        assert_same(sample(made, MANY), expected)
        assert (made.steps is not None) == bool(made.graphs) == there
        assert all(bool(c.untyped_storage().nbytes()) == there for c in made.twin.copies)


def test_prompts_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their prefill is no decode step, although one position is all it has."""
    monkeypatch.setattr(graph, "PREFILL_TOKENS", 2)
    model = policy_of("llama")
    made = engine("graph", model)
    as_on_cuda(made, monkeypatch)
    for prompts in (PROMPTS, [[5], [9], [20], [33], [40]]):
        rollout = sample(made, prompts)
        valid, (logprobs, _) = rollout.response_mask, judged(model, rollout)
        torch.testing.assert_close(rollout.logprobs[valid], logprobs[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rollouts_of_all_sizes_on_one_engine(kind: str, kept: list[int]) -> None:
    """Invariant 29: nothing of an earlier rollout is left, be it larger or smaller; buffers are
    made anew only where they are too small."""
    made = engine("graph", policy_of(kind), tokens=12)
    long = [[3 + i % 40 for i in range(70)], [5, 9]]
    buffers = []
    for prompts in (PROMPTS, MANY, PROMPTS[:1], long, MANY[:9], PROMPTS):
        fresh = engine("graph", policy_of(kind), tokens=12)
        assert_same(sample(made, prompts), sample(fresh, prompts))
        buffers.append(made.steps)
    assert [a is b for a, b in pairwise(buffers)] == [
        False, True, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 7, 13, 64])
def test_prefill_in_parts(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 4: prompts read one, two or several at a time, padded or not."""
    made = engine("graph", policy_of("llama"))
    even = [prompt for prompt in MANY if len(prompt) == 3]
    expected = [sample(made, prompts) for prompts in (MANY, even)]
    monkeypatch.setattr(graph, "PREFILL_TOKENS", tokens)
    parts = []
    twin = made.twin
    made.twin = lambda ids, *rest: parts.append(ids.shape) or twin(ids, *rest)
    made.twin.refresh, made.twin.nbytes = twin.refresh, 0
    for prompts, wanted in zip((MANY, even), expected, strict=True):
        assert_same(sample(made, prompts), wanted)
    assert max(rows for rows, wide in parts if wide == 6) == max(1, tokens // 6)


def test_one_seed_one_reply_whatever_is_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 4, 31: the uniform numbers of a row are its own: the same in a bucket of 24 as in
    one of 8."""
    made = engine("graph", policy_of("gpt2"))
    as_on_cuda(made, monkeypatch)
    found = []
    for buckets in ((8,), (24,)):
        monkeypatch.setattr(graph, "BUCKETS", buckets)
        found.append(sample(made, MANY[:7]))
    assert_same(found[0], found[1])


def test_buckets() -> None:
    """The next of the list; beyond it multiples of the largest."""
    for rows, expected in ((1, 8), (8, 8), (9, 16), (49, 64), (1024, 1024), (1025, 2048)):
        assert bucket(rows) == expected


@pytest.mark.parametrize("name", ENGINES)
def test_pad_and_unused_ids_are_never_drawn(name: str) -> None:
    """Invariant 3: not even by the smallest and the largest uniform number, of a head that would
    prefer them."""
    model = policy_of("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[PAD] *= 50
    made = engine(name, model, stop_ids=[WORDS - 1])
    for uniform in (0.0, 1 - 2**-24):
        rollout = made.generate(MANY, torch.full((len(MANY), 8), uniform))
        drawn = rollout.response_ids[rollout.response_mask]
        assert ((drawn > 0) & (drawn < WORDS)).all()
