"""Kernels of decode steps against plain torch, on a GPU or by triton's interpreter
(TRITON_INTERPRET=1 in the environment); skipped where triton is missing."""

import os
from copy import deepcopy
from typing import Any

import _engines as reference
import pytest
import torch
from _engines import as_on_cuda, engine, replies, sample
from _models import PROMPTS, policy_of

from cores.models.vocabulary import EXCLUDED_LOGIT
from cores.rollout.graph import engine as graph

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET is not 1", allow_module_level=True)

from cores.rollout.graph import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 16), (4, 2, 20), (8, 1, 64)])
@pytest.mark.parametrize("length", [0, 1, 150])
def test_attention(dtype: torch.dtype, heads: int, groups: int, width: int, length: int) -> None:
    """Of rows that begin anywhere, the first position of all included, over several blocks; new
    keys as views with strides of their own; the cache is written at `length` alone, in its rows."""
    torch.manual_seed(0)
    rows, room = 3, 200
    new = torch.randn(3, rows, 1, heads + 1, width, device=DEVICE).transpose(2, 3)
    new = new.to(dtype).float()  # the interpreter rounds to bfloat16 by cutting off
    query, new_keys, new_values = new[0, :, :heads], new[1, :, :groups], new[2, :, 1 : groups + 1]
    cache = torch.randn(2, rows + 2, groups, room, width, device=DEVICE).to(dtype)
    copy = cache.clone()
    start = torch.tensor([0, 5, 130, 0, 0], dtype=torch.int32, device=DEVICE).clamp(max=length)
    now = length - start.long()
    found = kernels.decode_attention(
        query, new_keys, new_values, cache[0], cache[1], start, now, 0.3
    )
    with torch.device(DEVICE):
        expected = reference.decode_attention(
            query.to(dtype), new_keys, new_values, copy[0], copy[1], start, now, 0.3
        )
    assert torch.equal(cache, copy)
    assert found.shape == (rows, 1, heads, width)
    gap = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, atol=gap, rtol=gap)


def state(rows: int, tokens: int, temperature: float = 1.0) -> dict[str, Any]:
    """What `sample_into` reads and writes, rows in another order than their places."""
    shape = (rows, tokens)
    made = {
        "uniform": torch.rand(shape),
        "tokens": torch.zeros(shape, dtype=torch.long),
        "logprobs": torch.zeros(shape),
        "entropies": torch.zeros(shape),
        "newest": torch.zeros(rows, dtype=torch.long),
        "places": torch.randperm(rows) * tokens + 3,
        "positions": torch.arange(rows),
    }
    return {"temperature": temperature, **{name: t.to(DEVICE) for name, t in made.items()}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [31, 4096, 20_001])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampling(dtype: torch.dtype, vocabulary: int, temperature: float) -> None:
    """The same tokens, log-probs and entropies, at the same places, over one block and several."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, 2, vocabulary, device=DEVICE)).to(dtype)[:, -1]
    logits[:, [0, 10, vocabulary - 1]] = EXCLUDED_LOGIT
    made = state(5, 7, temperature)
    wanted = deepcopy(made)
    kernels.sample_into(logits, **made)
    reference.sample_into(logits, **wanted)
    for name in ("tokens", "newest", "places", "positions"):
        assert torch.equal(made[name], wanted[name])
    for name in ("logprobs", "entropies"):
        torch.testing.assert_close(made[name], wanted[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_sampling_of_a_policy_gone_bad(broken: float) -> None:
    """One logit of the last block, or all, that are not finite: an id that there is, and NaN."""
    logits = torch.zeros(3, 20_001, device=DEVICE)
    logits[0], logits[1, -1] = broken, broken
    made = state(3, 4)
    rows = made["places"] // 4
    kernels.sample_into(logits, **made)
    assert ((made["newest"] >= 0) & (made["newest"] < 20_001)).all()
    assert made["logprobs"][rows, 3].isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_sampling_at_the_edges(uniform: float) -> None:
    """Invariant 3: the smallest and the largest number draw the first and no excluded id, in
    vocabularies whose ends are excluded."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(16, 9001, device=DEVICE)
    logits[:, :50] = logits[:, -5000:] = EXCLUDED_LOGIT
    made = state(16, 4)
    made["uniform"].fill_(uniform)
    kernels.sample_into(logits, **made)
    assert ((made["newest"] >= 50) & (made["newest"] < 4001)).all()
    if uniform == 0:
        assert (made["newest"] == 50).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rollouts_by_kernels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 1: a whole rollout through the kernels is that of plain torch."""
    if DEVICE.type == "cuda":
        pytest.skip("stands in for a GPU")
    monkeypatch.setattr(graph, "LOOK", 2)
    monkeypatch.setattr(graph, "BUCKETS", (2, 4, 8))
    plain, made = (engine("graph", policy_of(kind), tokens=6) for _ in range(2))
    as_on_cuda(made, monkeypatch, kernels)
    expected, found = (sample(e, [*PROMPTS, [8, 3]]) for e in (plain, made))
    assert replies(found) == replies(expected)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-5, rtol=1e-5)
