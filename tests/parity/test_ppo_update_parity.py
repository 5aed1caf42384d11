"""A whole PPO update against a second implementation that shares no code with the first.

Below, everything is written out row by row and token by token on stock Hugging Face models: one
unpadded forward pass a row, no masks, no micro-batches, AdamW and clipping by hand.
"""

from typing import Any

import pytest
import torch
from _models import (
    EXCLUDED,
    KINDS,
    ROWS,
    WORDS,
    adam,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
    reward_folder,
    sft_folder,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cores.draws import permutation

CLIP, VALUE_CLIP, KL_COEF, GAMMA, LAM, TEMPERATURE = 0.1, 0.15, 0.3, 0.97, 0.9, 0.8
REWARD_CLIP, PENALTY, NORM, BETA2, EPS, DECAY = 0.6, 0.4, 0.7, 0.95, 1e-5, 0.02
RATES = {"actor": 1e-3, "critic": 2e-3}
EPOCHS, BATCH, MINIBATCH = 2, 8, 4
ALLOWED = [i for i in range(ROWS) if i not in EXCLUDED]
Row = tuple[list[int], list[int], bool]


def shift(model: Any, seed: int) -> None:
    """Move every weight a little, so that actor and reference, critic and reward model differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))


def stock(kind: str, seed: int | None, policy: bool) -> Any:
    """A saved parent without dropout, shifted if a seed is given."""
    none = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    none = none if kind == "gpt2" else {"attention_dropout": 0.0}
    auto = AutoModelForCausalLM if policy else AutoModelForSequenceClassification
    model = auto.from_pretrained(sft_folder(kind) if policy else reward_folder(kind), **none)
    if seed is not None:
        shift(model, seed)
    return model


def reply_logprobs(model: Any, row: Row) -> list[Tensor]:
    """Log-prob of each reply token."""
    prompt, reply, _ = row
    logits = model(torch.tensor([prompt + reply])).logits[0] / TEMPERATURE
    result = []
    for t, token in enumerate(reply):
        at = logits[len(prompt) + t - 1]
        result.append(at[token] - torch.log(sum(at[i].exp() for i in ALLOWED)))
    return result


def reply_values(model: Any, row: Row) -> list[Tensor]:
    """Value of the state before each reply token, then that of the whole row."""
    prompt, reply, _ = row
    hidden = model.base_model(torch.tensor([prompt + reply])).last_hidden_state[0]
    logits = hidden @ model.score.weight[0] - 0.75
    return [logits[len(prompt) + t - 1] for t in range(len(reply) + 1)]


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2, with bias correction; a clipped gradient first."""

    def __init__(self, model: Any, rate: float) -> None:
        self.weights = list(model.parameters())
        self.rate, self.steps = rate, 0
        self.first = [torch.zeros_like(w) for w in self.weights]
        self.second = [torch.zeros_like(w) for w in self.weights]

    @torch.no_grad()
    def step(self, loss: Tensor) -> float:
        """One step down `loss`; returns the gradient's norm."""
        with torch.enable_grad():
            found = torch.autograd.grad(loss, self.weights, allow_unused=True)
        norm = sum(g.double().square().sum() for g in found if g is not None).sqrt().item()
        scale = min(1.0, NORM / (norm + 1e-6))
        self.steps += 1
        for i, w in enumerate(self.weights):
            if found[i] is None:
                continue
            gradient = found[i] * scale
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = BETA2 * self.second[i] + (1 - BETA2) * gradient * gradient
            mean = self.first[i] / (1 - 0.9**self.steps)
            square = self.second[i] / (1 - BETA2**self.steps)
            w -= self.rate * DECAY * w
            w -= self.rate * mean / (square.sqrt() + EPS)
        return norm


def estimates(rows: list[Row], models: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Old log-probs and values, advantages (white) and returns of every token."""
    old, values, advantages = [], [], []
    for row in rows:
        logprobs = [x.item() for x in reply_logprobs(models["actor"], row)]
        reference = [x.item() for x in reply_logprobs(models["reference"], row)]
        value = [x.item() for x in reply_values(models["critic"], row)[:-1]]
        score = reply_values(models["reward"], row)[-1].item()
        score = max(-REWARD_CLIP, min(REWARD_CLIP, score)) - (0.0 if row[2] else PENALTY)
        rewards = [-KL_COEF * (a - b) for a, b in zip(logprobs, reference, strict=True)]
        rewards[-1] += score
        row_advantages = []
        for t in range(len(rewards)):
            total = 0.0
            for later in range(t, len(rewards)):
                after = value[later + 1] if later + 1 < len(value) else 0.0
                delta = rewards[later] + GAMMA * after - value[later]
                total += (GAMMA * LAM) ** (later - t) * delta
            row_advantages.append(total)
        old.append(logprobs)
        values.append(value)
        advantages.append(row_advantages)
    returns = [[a + v for a, v in zip(*pair, strict=True)]
               for pair in zip(advantages, values, strict=True)]  # fmt: skip
    flat = [a for row in advantages for a in row]
    mean = sum(flat) / len(flat)
    deviation = (sum((a - mean) ** 2 for a in flat) / len(flat)) ** 0.5
    white = [[(a - mean) / deviation for a in row] for row in advantages]
    return {"old": old, "values": values, "advantages": white, "returns": returns}


def second_implementation(kind: str, rows: list[Row], order_seed: int) -> dict[str, Any]:
    """Actor and critic after one update, with the losses and gradient norms of its steps."""
    models = {
        "actor": stock(kind, 1, policy=True),
        "reference": stock(kind, None, policy=True),
        "critic": stock(kind, 2, policy=False),
        "reward": stock(kind, None, policy=False),
    }
    with torch.no_grad():
        known = estimates(rows, models)
    optimizers = {name: AdamW(models[name], rate) for name, rate in RATES.items()}
    steps = []
    for epoch in range(EPOCHS):
        order = permutation(len(rows), order_seed, "minibatches", 0, epoch)
        for start in range(0, len(rows), MINIBATCH):
            policy: list[Tensor] = []
            value: list[Tensor] = []
            for i in order[start : start + MINIBATCH]:
                new = reply_logprobs(models["actor"], rows[i])
                estimated = reply_values(models["critic"], rows[i])
                for t in range(len(rows[i][1])):
                    advantage, target = known["advantages"][i][t], known["returns"][i][t]
                    ratio = (new[t] - known["old"][i][t]).exp()
                    bounded = ratio.clamp(1 - CLIP, 1 + CLIP)
                    policy.append(-torch.minimum(ratio * advantage, bounded * advantage))
                    was = known["values"][i][t]
                    near = was + (estimated[t] - was).clamp(-VALUE_CLIP, VALUE_CLIP)
                    errors = (estimated[t] - target) ** 2, (near - target) ** 2
                    value.append(torch.maximum(*errors) / 2)
            losses = {"actor": sum(policy) / len(policy), "critic": sum(value) / len(value)}
            norms = {name: optimizers[name].step(loss) for name, loss in losses.items()}
            steps.append({name: (losses[name].item(), norms[name]) for name in losses})
    return {**models, "steps": steps}


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_equals_a_second_implementation(kind: str) -> None:
    """Invariants 1-5, 9, 13-15, 19-24: from fixed ids to the parameters of actor and critic after
    four optimizer steps: 1e-5, and each step's losses and gradient norms."""
    trainer = make_trainer(
        kind,
        batch_size=BATCH,
        minibatch_size=MINIBATCH,
        microbatch_size=3,
        epochs=EPOCHS,
        temperature=TEMPERATURE,
        actor_learning_rate=RATES["actor"],
        critic_learning_rate=RATES["critic"],
        **adam(beta2=BETA2, eps=EPS, weight_decay=DECAY),
        max_grad_norm=NORM,
        kl_coef=KL_COEF,
        gamma=GAMMA,
        lam=LAM,
        clip=CLIP,
        value_clip=VALUE_CLIP,
        reward_clip=REWARD_CLIP,
        missing_eos_penalty=PENALTY,
        seed=5,
    )
    actor, critic = trainer.roles.actor.unwrapped.model, trainer.roles.critic.unwrapped.model
    shift(actor, 1)
    shift(critic, 2)
    rollout = fixed_rollout(rows=BATCH, seed=3)
    left = rollout.ids.shape[1] - rollout.response_mask.shape[1]
    rows: list[Row] = []
    for i in range(BATCH):
        prompt = rollout.ids[i, :left][rollout.mask[i, :left]].tolist()
        reply = rollout.response_ids[i][rollout.response_mask[i]].tolist()
        rows.append((prompt, reply, bool(rollout.ended[i])))
    assert all(token < WORDS for _, reply, _ in rows for token in reply)

    second = second_implementation(kind, rows, order_seed=5)
    steps = trainer.update(trainer.estimate(trainer.score(rollout)))

    assert len(steps) == len(second["steps"]) == 4
    for ours, theirs in zip(steps, second["steps"], strict=True):
        assert ours["policy_loss"] == pytest.approx(theirs["actor"][0], abs=1e-5)
        assert ours["value_loss"] == pytest.approx(theirs["critic"][0], abs=1e-5)
        assert ours["actor_grad_norm"] == pytest.approx(theirs["actor"][1], rel=1e-4)
        assert ours["critic_grad_norm"] == pytest.approx(theirs["critic"][1], rel=1e-4)
    assert 0 < max(s["clip_fraction"] for s in steps) < 1
    start = parameters(stock(kind, 1, policy=True))
    assert largest_difference(start, parameters(actor)) > 1e-3
    assert largest_difference(parameters(actor), parameters(second["actor"])) < 1e-5
    assert largest_difference(parameters(critic), parameters(second["critic"])) < 1e-5
