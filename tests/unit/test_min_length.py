"""Minimum length: the same in sampling and in every log-prob. And the entropy as a term of the
loss, and log-probs of texts that were not sampled."""

from typing import Any

import pytest
import torch
from _engines import BOTH, engine, sample
from _models import EOS, KINDS, LORA, PROMPTS, fixed_rollout, make_trainer, parameters, policy_of

from cores.models.actor import Actor, token_logprobs
from cores.rollout import Rollout

STOPS = [EOS, *range(2, 30)]
"""Half the vocabulary, so that few replies would reach the minimum by themselves."""


def actor_of(model: Any, minimum: int, temperature: float = 1.0, **more: Any) -> Actor:
    return Actor(model, temperature, STOPS, minimum, **more)


def sampled(name: str, model: Any, minimum: int, temperature: float = 1.0) -> Rollout:
    made = engine(name, model, temperature, stop_ids=STOPS, min_new_tokens=minimum)
    return sample(made, PROMPTS * 6)


@pytest.mark.parametrize(("name", "kind"), BOTH)
@pytest.mark.parametrize("minimum", [1, 3])
@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_recorded_logprobs_know_the_minimum_length(
    name: str, kind: str, minimum: int, temperature: float
) -> None:
    """Invariants 1, 2, 3: no stop id in the first `minimum` tokens, the very next token can be one,
    and recorded log-probs are the actor's, whose probabilities there sum to 1 without stops."""
    model = policy_of(kind)
    rollout = sampled(name, model, minimum, temperature)
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
    logprobs, entropy = token_logprobs(
        logits, ids, 0.5, torch.tensor([1, 2, 3]), torch.arange(4) < 2, entropy_grad=True
    )
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
    logprobs, entropy = token_logprobs(logits, ids, 1.0, torch.tensor([0]), torch.arange(2) < 1)
    ln2 = torch.tensor(2.0).log().item()
    torch.testing.assert_close(logprobs, torch.tensor([[-ln2, -2 * ln2]]))
    torch.testing.assert_close(entropy, torch.tensor([[ln2, 1.5 * ln2]]))
    warm, _ = token_logprobs(logits, ids, 2.0, torch.tensor([0]), torch.arange(2) < 1)
    assert warm[0, 0].item() == pytest.approx(-ln2, abs=1e-6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("minimum", [0, 2])
def test_entropy_gradient(minimum: int) -> None:
    """Invariant 24: with `entropy_grad` the same value, bit for bit, and the gradient by hand
    -p (log p + H) / temperature; without it, and under no_grad, none."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 7, dtype=torch.float32).mul(3).requires_grad_()
    ids, temperature = torch.randint(0, 7, (2, 3)), 0.7
    forbidden = torch.tensor([0, 4]), torch.arange(3) < minimum
    _, plain = token_logprobs(logits, ids, temperature, *forbidden)
    _, entropy = token_logprobs(logits, ids, temperature, *forbidden, entropy_grad=True)
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
