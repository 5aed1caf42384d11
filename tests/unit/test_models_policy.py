"""Log-probs of the policy: temperature, padding, positions, dropout, excluded ids."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import (
    EXCLUDED,
    FAMILIES,
    PAD,
    PROMPTS,
    ROWS,
    WORDS,
    causal,
    fixed_rollout,
    make_trainer,
    policy_of,
    sft_folder,
    toy_tokenizer,
)
from torch import Tensor

from cores.data import left_pad, right_pad
from cores.models import Actor, save_model
from cores.models.actor import token_logprobs
from cores.models.bases import load_base
from cores.models.body import position_ids
from cores.models.folders import DROPOUTS
from cores.models.loading import load_config
from cores.models.vocabulary import exclude_tokens

REPLIES = [[4, 8, 15, 16], [23, 42], [3, 1, 4], [1]]
ALLOWED = [i for i in range(ROWS) if i not in EXCLUDED]


def brute_force(model: Any, prompt: list[int], reply: list[int], temperature: float) -> Tensor:
    """Log-probs of a reply, one forward pass a token, no padding, over the allowed ids only."""
    result = []
    for t, token in enumerate(reply):
        logits = model(torch.tensor([prompt + reply[:t]])).logits[0, -1] / temperature
        result.append(logits[token] - torch.logsumexp(logits[ALLOWED], dim=0))
    return torch.stack(result)


def batch(prompts: list[list[int]], replies: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask (B, P + T) as a rollout pads them, and the response mask."""
    left, left_mask = left_pad(prompts, PAD)
    right, right_mask = right_pad(replies, PAD)
    return torch.cat([left, right], 1), torch.cat([left_mask, right_mask], 1), right_mask


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@torch.no_grad()
def test_logprobs_are_a_forward_pass_a_token(kind: str, temperature: float) -> None:
    """Invariants 2, 4, 5: left and right padding together = one unpadded pass a token, with the
    temperature, over the allowed ids."""
    actor = Actor(policy_of(kind), temperature)
    plain = causal(kind)  # the same random weights, nothing excluded
    ids, mask, response = batch(PROMPTS, REPLIES)
    logprobs, _ = actor(ids, mask, response.shape[1])
    for i, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
        expected = brute_force(plain, prompt, reply, temperature)
        torch.testing.assert_close(logprobs[i, : len(reply)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_padding_and_company_change_nothing(kind: str) -> None:
    """Invariant 4: left padding, right padding, none, another batch composition: same numbers."""
    actor = Actor(policy_of(kind), 1.0)
    ids, mask, response = batch(PROMPTS, REPLIES)
    together, entropy = actor(ids, mask, response.shape[1])
    for i, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
        n = len(reply)
        row = torch.tensor([prompt + reply])
        alone, alone_entropy = actor(row, torch.ones_like(row).bool(), n)
        wide = torch.tensor([[PAD] * 7 + prompt + reply + [PAD] * 5])
        wide_mask = torch.zeros_like(wide).bool()
        wide_mask[:, 7 : 7 + row.shape[1]] = True
        padded, _ = actor(wide, wide_mask, n + 5)
        torch.testing.assert_close(together[i, :n], alone[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(padded[0, :n], alone[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy[i, :n], alone_entropy[0], atol=1e-5, rtol=1e-5)
    some, _ = actor(ids[[3, 1]], mask[[3, 1]], response.shape[1])
    torch.testing.assert_close(some[response[[3, 1]]], together[[3, 1]][response[[3, 1]]])


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_what_stands_in_padding_does_not_matter(kind: str) -> None:
    """Invariant 8: the id in a padded place is never read."""
    actor = Actor(policy_of(kind), 1.0)
    ids, mask, response = batch(PROMPTS, REPLIES)
    other = torch.where(mask, ids, 37)
    first, _ = actor(ids, mask, response.shape[1])
    second, _ = actor(other, mask, response.shape[1])
    torch.testing.assert_close(first[response], second[response], atol=1e-6, rtol=1e-6)


def test_positions_come_from_the_mask() -> None:
    """Invariant 5: positions count attended tokens; padding before them is 0."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()
    expected = [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 2, 2]]
    assert position_ids(mask).tolist() == expected


def test_token_logprobs_by_hand() -> None:
    """Invariants 2, 24: softmax of (0, ln 3) / 1 is (1/4, 3/4); at temperature 2 the second has
    sqrt(3) / (1 + sqrt(3)). Entropy is that of the same distribution."""
    logits = torch.tensor([[[0.0, 3.0]]]).log().clamp(min=0.0)  # (0, ln 3)
    logprobs, entropy = token_logprobs(logits, torch.tensor([[1]]), 1.0)
    assert logprobs.item() == pytest.approx(torch.tensor(0.75).log().item(), abs=1e-6)
    assert entropy.item() == pytest.approx(0.5623351, abs=1e-6)
    logprobs, entropy = token_logprobs(logits, torch.tensor([[1]]), 2.0)
    p = 3**0.5 / (1 + 3**0.5)
    expected = torch.tensor([p, 1 - p])
    assert logprobs.item() == pytest.approx(expected[0].log().item(), abs=1e-6)
    assert entropy.item() == pytest.approx(-(expected * expected.log()).sum().item(), abs=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_excluded_ids_have_probability_zero(kind: str) -> None:
    """Invariant 3: pad and the rows beyond the tokenizer are outside every log-softmax, even where
    the bare model prefers them, and carry no gradient."""
    model = policy_of(kind)
    with torch.no_grad():
        model.get_output_embeddings().weight[EXCLUDED] *= 30
    ids = torch.tensor([[5, 9, 13, 20, 21]])
    probs = model(ids).logits.softmax(dim=-1)
    most = 1e-12 if kind == "gemma2" else 0.0  # its logits end at -30
    assert (probs[..., EXCLUDED] <= most).all()
    assert probs[..., ALLOWED].sum(dim=-1).sub(1).abs().max() < 1e-5
    half = model(ids).logits.to(torch.bfloat16).softmax(dim=-1)
    assert (half[..., EXCLUDED] <= most).all()
    logprobs, entropy = Actor(model, 1.0)(ids, torch.ones_like(ids).bool(), 3)
    assert torch.isfinite(entropy).all()
    assert (entropy >= 0).all()
    logprobs.sum().backward()
    gradient = model.get_output_embeddings().weight.grad
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        assert (gradient[EXCLUDED] == 0).all()
    assert (gradient[ALLOWED] != 0).any()


@pytest.mark.parametrize("kind", FAMILIES)
def test_sft_loss_excludes_them_too(kind: str) -> None:
    """Invariant 3: the stock loss of the hooked model = cross-entropy over the allowed ids."""
    ids = torch.tensor([[5, 9, 13, 20, 21, 1]])
    labels = torch.tensor([[-100, -100, 13, 20, 21, 1]])
    loss = policy_of(kind)(input_ids=ids, labels=labels).loss
    raw = causal(kind)(ids).logits[0]
    positions = torch.arange(1, 5)
    nats = raw[positions][:, ALLOWED].logsumexp(dim=1) - raw[positions, labels[0, 2:]]
    assert loss.item() == pytest.approx(nats.mean().item(), abs=1e-5)
    bare = causal(kind)(input_ids=ids, labels=labels).loss
    assert abs(bare.item() - loss.item()) > 1e-3  # the difference that is tested is there


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_dropout_is_off_when_asked(kind: str) -> None:
    """Invariant 7: a model loaded without dropout computes the same in train mode as in eval
    mode; one loaded with dropout does not; both remember the parent's rates."""
    ids = torch.tensor([PROMPTS[1] * 3])
    off, on = policy_of(kind, dropout=False), policy_of(kind, dropout=True)
    expected = off.eval()(ids).logits
    off.train()
    assert torch.equal(off(ids).logits, expected)
    assert torch.equal(off(ids).logits, expected)
    on.train()
    assert not torch.allclose(on(ids).logits, expected, atol=1e-3)
    rates = {k: v for k, v in causal(kind).config.to_dict().items() if k.endswith(DROPOUTS)}
    assert max(rates.values()) >= 0.1
    for config in (off.config, on.config):
        assert {name: getattr(config, name) for name in rates} == rates


def test_layers_never_drop_out(tmp_path: Path) -> None:
    """Invariants 7, 21: with dropout as the base has it, OPT still runs every layer, so that all
    parameters have gradients on all ranks; what is saved keeps the base's rate."""
    assert causal("opt").model.decoder.layerdrop == 0.5
    model: Any = load_base(sft_folder("opt"), toy_tokenizer()).train()
    for loaded in (model, policy_of("opt", dropout=True), policy_of("opt", dropout=False)):
        assert loaded.model.decoder.layerdrop == 0
    assert {layer.dropout for layer in model.model.decoder.layers} == {0.1}
    assert {layer.self_attn.dropout for layer in model.model.decoder.layers} == {0.1}
    calls = count_calls(model)
    for _ in range(20):
        model(torch.tensor([PROMPTS[1]]))
    assert calls() == 20
    save_model(model, toy_tokenizer(), tmp_path)
    assert load_config(tmp_path).layerdrop == 0.5


@pytest.mark.parametrize("kind", FAMILIES)
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    """Invariant 7: the same loss and the same gradients, with a second forward pass."""
    ids, mask, response = batch(PROMPTS, REPLIES)
    found = []
    for checkpointing in (False, True):
        model = policy_of(kind)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls = count_calls(model)
        logprobs, _ = Actor(model, 1.0)(ids, mask, response.shape[1])
        logprobs[response].sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found.append((logprobs.detach(), gradients, calls()))
    (plain, gradients, once), (again, theirs, twice) = found
    assert (once, twice) == (1, 2)
    torch.testing.assert_close(plain, again)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-6, rtol=1e-5)


def count_calls(model: Any) -> Callable[[], int]:
    """How often the first layer has run."""
    calls = []
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    first = next(layers[0].children())  # what is inside a layer is what runs again
    first.register_forward_pre_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


def test_the_hook_follows_the_head() -> None:
    """Invariant 3: excluding is idempotent in effect and does not enter the saved state."""
    model = causal("llama")
    names = set(model.state_dict())
    exclude_tokens(model, EXCLUDED)
    assert set(model.state_dict()) == names
    assert model(torch.tensor([[5]])).logits.shape[-1] == ROWS > WORDS


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_fused_logprobs_are_plain_ones(temperature: float) -> None:
    """Invariant 6: those of a log_softmax written out, in values and gradients; the entropy keeps
    nothing of the logits' size for the backward pass unless it has a gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(3, 5, 11, generator=generator)
    ids = torch.randint(11, (3, 5), generator=generator)
    weights = torch.randn(3, 5, generator=generator)
    gradients, kept = [], set()
    for fused in (True, False):
        x = logits.clone().requires_grad_()
        if fused:
            seen: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, seen=seen: (seen.append(t), t)[1], lambda t: t
            ):
                found, entropy = token_logprobs(x, ids, temperature)
            assert not entropy.requires_grad
            kept = {t.data_ptr() for t in seen if t.numel() == logits.numel()}
        else:
            found = (x / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        (found * weights).sum().backward()
        gradients.append((found.detach(), x.grad))
    assert len(kept) <= 1
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)


def test_no_distribution_outlives_its_micro_batch() -> None:
    """Invariant 6: after scoring and an optimizer step nothing of shape (B, T, V) is left."""
    others = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]  # of other tests
    known = set(map(id, others))
    trainer = make_trainer("gpt2", microbatch_size=2)
    experience = trainer.estimate(trainer.score(fixed_rollout()))
    stats = trainer.optimize(experience, torch.arange(4))
    tensors = [x for x in gc.get_objects() if isinstance(x, torch.Tensor) and id(x) not in known]
    assert [x.shape for x in tensors if x.dim() == 3 and x.shape[-1] == ROWS] == []
    assert stats  # and the experience, both still held
