"""Log-probs a few tokens at a time: the same numbers and gradients, and what memory they take."""

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _models import FAMILIES, ROWS, causal, fixed_rollout, largest_difference, policy_of
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, GraniteConfig

from cores.errors import UserError
from cores.models import Actor, actor
from cores.models.actor import head_logits, token_logprobs
from cores.models.body import position_ids

SMALL: dict[str, Any] = {
    "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.25,
}  # fmt: skip
SCALED = {
    "granite": GraniteConfig(**SMALL, logits_scaling=0.5),
    "cohere": CohereConfig(**SMALL, logit_scale=0.25),
}
"""Families that scale their logits behind the head."""


def model_of(kind: str) -> Any:
    """A policy: of the usual families with ids excluded, of the scaled ones as it is made."""
    if kind not in SCALED:
        return policy_of(kind)
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SCALED[kind]).eval()


def loss_of(logprobs: Tensor, entropy: Tensor) -> Tensor:
    """Of all places, each with a weight of its own."""
    weights = torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)
    return (logprobs * weights).sum() + (entropy * weights.flip(0)).sum()


def whole_way(policy: Actor, made: Any, width: int) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy from all logits at once, by the causal model's own forward pass."""
    model: Any = actor.plain_model(policy.model)
    inputs = {"input_ids": made.ids, "attention_mask": made.mask.long()}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = position_ids(made.mask)
    logits = model(**inputs).logits[:, -width - 1 : -1]
    early = torch.arange(width) < policy.min_new_tokens
    chosen = made.ids[:, -width:]
    return token_logprobs(
        logits, chosen, policy.temperature, policy.stop_ids, early, entropy_grad=True
    )


@pytest.mark.parametrize("minimum", [0, 2])
@pytest.mark.parametrize("kind", [*FAMILIES, *SCALED])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, kind: str, minimum: int) -> None:
    """Invariant 6: log-probs, entropy and every gradient are those of whole logits, for chunks
    that end within rows, one that holds all, and one that is kept for the backward pass, whatever
    the architecture does behind its head."""
    made, width = fixed_rollout(5), 6
    found = []
    for tokens in (None, 1, 7, 40, 1000):
        model = model_of(kind)
        policy = Actor(model, 0.7, [1, 9], minimum, entropy_grad=True)
        if tokens is None:
            logprobs, entropy = whole_way(policy, made, width)
        else:
            monkeypatch.setattr(actor, "CHUNK_LOGITS", tokens * ROWS)
            logprobs, entropy = policy(made.ids, made.mask, width)
        loss_of(logprobs, entropy).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((logprobs.detach(), entropy.detach(), gradients))
    for logprobs, entropy, gradients in found[1:]:
        torch.testing.assert_close(logprobs, found[0][0], atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(entropy, found[0][1], atol=1e-5, rtol=1e-6)
        scale = max(g.abs().max().item() for g in gradients.values())
        assert largest_difference(gradients, found[0][2]) < 4e-6 * scale


def test_adapters_in_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 6, 10: an adapter of the head takes part, learns, and can be off."""
    monkeypatch.setattr(actor, "CHUNK_LOGITS", 4 * ROWS)
    made = fixed_rollout(3)
    wrapped = get_peft_model(policy_of("llama"), LoraConfig(r=2, target_modules=["lm_head"]))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    policy = Actor(wrapped, 1.0, entropy_grad=True)
    found, expected = policy(made.ids, made.mask, 6), whole_way(policy, made, 6)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-6)
    adapters = [p for p in wrapped.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(loss_of(*x), adapters) for x in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    assert len(adapters) == 2
    with wrapped.disable_adapter():
        off, _ = policy(made.ids, made.mask, 6)
    bare, _ = Actor(policy_of("llama"), 1.0)(made.ids, made.mask, 6)
    torch.testing.assert_close(off, bare, atol=1e-5, rtol=1e-6)
    assert (off - found[0]).abs().max() > 0.1


def test_entropy_only_where_it_is_wanted() -> None:
    """Without it None stands in its place and the log-probs are the same."""
    made, policy = fixed_rollout(), Actor(policy_of("gpt2"), 1.0)
    logprobs, entropy = policy(made.ids, made.mask, 6, entropy=False)
    assert entropy is None
    assert torch.equal(logprobs, policy(made.ids, made.mask, 6)[0])


def test_the_model_is_left_as_it_was() -> None:
    """Its body is back in place, after a head that failed too; no parameter is lost."""
    model = policy_of("opt_projected")
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(RuntimeError):
        head_logits(model, torch.zeros(2, 5))
    assert isinstance(model.model, torch.nn.Module)
    assert [name for name, _ in model.named_parameters()] == names


def test_a_model_without_a_body_is_refused() -> None:
    """A user's model whose class has no body of its own is named before anything runs."""
    model = policy_of("gpt2")
    model.base_model_prefix = "nothing"
    with pytest.raises(UserError, match="GPT2LMHeadModel does not keep its head apart"):
        Actor(model, 1.0)


@pytest.mark.parametrize(("tokens", "passes"), [(15, 4), (30, 2), (239, 2), (240, 1)])
def test_few_logits_are_kept(monkeypatch: pytest.MonkeyPatch, tokens: int, passes: int) -> None:
    """Logits of 30 tokens are made again in the backward pass, except where a chunk could hold
    eight times as many."""
    made, policy = fixed_rollout(5), Actor(policy_of("gpt2"), 1.0)
    monkeypatch.setattr(actor, "CHUNK_LOGITS", tokens * ROWS)
    done: list[int] = []
    head: Any = actor.plain_model(policy.model).get_output_embeddings()
    head.register_forward_pre_hook(lambda _, args: done.append(args[0].shape[1]))
    policy(made.ids, made.mask, 6)[0].sum().backward()
    assert sum(done[:2] if passes == 4 else done[:1]) == 30
    assert len(done) == passes


@pytest.mark.parametrize(("tokens", "passes"), [(60, 10), (240, 4), (2400, 1)])
def test_shards_are_put_together_as_often_everywhere(
    monkeypatch: pytest.MonkeyPatch, tokens: int, passes: int
) -> None:
    """Under ZeRO-3 a rank of 30 tokens makes the parts that one of 300 needs, again or not."""
    made, policy = fixed_rollout(5), Actor(policy_of("gpt2"), 1.0)
    monkeypatch.setattr(actor, "CHUNK_LOGITS", tokens * ROWS)
    vars(next(policy.model.parameters()))["ds_id"] = 0
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda most, op: most.fill_(300))
    done: list[int] = []
    head: Any = actor.plain_model(policy.model).get_output_embeddings()
    head.register_forward_pre_hook(lambda _, args: done.append(args[0].shape[1]))
    policy(made.ids, made.mask, 6)[0].sum().backward()
    assert len(done) == passes


class Memory(TorchDispatchMode):
    """Peak of the bytes of tensors made within it and still alive, and their largest numel."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self._note(x)
        return result

    def _note(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self.largest = max(self.largest, x.numel())
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


BATCH, CHUNK = 4, 16


def memory_of(rows: int, width: int, entropy_grad: bool) -> Memory:
    """Of a forward and a backward pass of BATCH replies of `width` tokens."""
    model = causal("gpt2", rows=rows)
    policy = Actor(model, 0.7, [1], 2, entropy_grad)
    ids = torch.randint(2, rows, (BATCH, 8 + width))
    with Memory() as memory:
        logprobs, entropy = policy(ids, torch.ones_like(ids).bool(), width)
        assert entropy is not None
        (logprobs.sum() + (entropy.sum() if entropy_grad else 0.0)).backward()
    return memory


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_memory_by_vocabulary_and_length(
    monkeypatch: pytest.MonkeyPatch, entropy_grad: bool
) -> None:
    """Invariant 6: nothing has B * T * V elements, forward or backward; and what one more token
    costs at the peak does not depend on the vocabulary."""
    slopes = []
    for rows in (2048, 8192):
        monkeypatch.setattr(actor, "CHUNK_LOGITS", CHUNK * rows)
        short, long = (memory_of(rows, width, entropy_grad) for width in (48, 96))
        assert short.largest == long.largest == rows * 32  # the embeddings' gradient
        assert long.largest < BATCH * 96 * rows / 10
        slopes.append((long.peak - short.peak) / (BATCH * 48))
    assert slopes[0] == pytest.approx(slopes[1], rel=0.05)
    assert slopes[0] > 0  # something was measured
