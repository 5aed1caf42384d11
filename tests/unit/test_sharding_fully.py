"""FSDP2 on one process, whose shards are whole: what it makes of models, optimizers and states.

Two processes are `tests/integration/test_processes.py`.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _models import PAD, causal, classifier, largest_difference, parameters
from torch import nn
from torch.distributed.tensor import DTensor

from cores.models import Actor
from cores.models.adapters import hold_linears
from cores.sharding import Trained, Whole
from cores.sharding.fully import Fully, FullyTrained

IDS = torch.tensor([[5, 6, 7, 8], [9, 5, 7, 6]])


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def trained(sharding: Whole, seed: int = 0, rate: float = 1e-2, clip: float = 0.1) -> Trained:
    """A tied GPT-2 as an actor."""
    model = Actor(causal("gpt2", seed=seed), temperature=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=sharding.fused)
    return sharding.prepare("actor", model, optimizer, clip)


def step(role: Trained, scale: float = 1.0) -> float:
    """One optimizer step of two micro-batches; the norm of its gradients."""
    for last, ids in zip((False, True), IDS.split(1), strict=True):
        logprobs, _ = role.module(ids, None, 3)
        role.backward(-scale * logprobs.sum(), last)
    norm = role.step()
    assert type(norm) is torch.Tensor
    return norm.item()


def apart(one: Trained, other: Trained) -> float:
    """Largest difference of all that two have in their states."""
    a, b = one.state(True), other.state(True)
    assert a.keys() == b.keys()
    assert all(type(tensor) is torch.Tensor for part in b.values() for tensor in part.values())
    return max(largest_difference(a[part], b[part]) for part in a)


def test_steps_are_those_of_whole_weights() -> None:
    """Weights, moments, norms; what is embedding and head stays one tensor."""
    one, other = trained(Whole("fp32", True)), trained(Fully("fp32", True))
    assert all(isinstance(p, DTensor) for p in other.parameters)
    for _ in range(2):
        assert step(other) == pytest.approx(step(one), rel=1e-6)
    assert apart(one, other) < 1e-6
    tied = other.unwrapped.model
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight


def test_a_step_that_is_no_number_is_left_out() -> None:
    role = trained(Fully("fp32", True))
    step(role)
    before = role.state(True)["weights"]
    assert math.isnan(step(role, scale=float("nan")))
    after = role.state(True)["weights"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_state_goes_on_in_either_form() -> None:
    """What one form wrote the other reads; then both take the same step."""
    forms = [Whole("fp32", True), Fully("fp32", True)]
    for writer, reader in (forms, forms[::-1]):
        one, other = trained(writer), trained(reader)
        step(one)
        state = one.state(True)
        for name, parameter in other.named().items():
            parameter.data.copy_(other._placed("weights", state["weights"][name], parameter))
        parts = {part: Part(tensors) for part, tensors in state.items()}
        other.load_moments(parts)
        assert apart(one, other) == 0
        step(one), step(other)
        assert apart(one, other) < 1e-6


class Part(dict[str, Any]):
    """As a `Reader`: tensors by name."""

    @property
    def names(self) -> set[str]:
        """Of the tensors."""
        return set(self)


def test_gathered_weights_are_plain() -> None:
    """Before the first forward pass too: generation, which calls layers and no forward pass of
    ours, and a state dict leave them whole; a step behind it is as ever."""
    one, other = trained(Whole("fp32", True)), trained(Fully("fp32", True))
    with one.gathered(), other.gathered():
        models = [role.unwrapped.model for role in (one, other)]
        said = [
            model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=PAD)
            for model in models
        ]
        assert torch.equal(*said)
        states = [model.state_dict() for model in models]
        assert not any(isinstance(tensor, DTensor) for tensor in states[1].values())
        assert largest_difference(*states) == 0
        assert not any(isinstance(p, DTensor) for p in models[1].parameters())
    assert all(isinstance(p, DTensor) for p in other.parameters)
    assert all(isinstance(t, DTensor) for t in other.unwrapped.model.state_dict().values())
    step(one), step(other)
    assert apart(one, other) < 1e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_models_say_the_same(precision: str) -> None:
    """In shards again behind a pass, embeddings too, and also with linear layers held in bf16."""
    made = [classifier("llama").eval().requires_grad_(False) for _ in range(2)]
    if precision == "bf16":
        made = [hold_linears(model, torch.bfloat16) for model in made]
    whole, shards = made[0], Fully(precision, True).frozen(made[1], torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert torch.equal(whole(input_ids=IDS).logits, shards(input_ids=IDS).logits)
    assert all(isinstance(p, DTensor) for p in shards.parameters())


def test_trainers_get_their_weights_back() -> None:
    """What a trainer's accelerator prepares are shards, its norms plain; `undone` fills the copy
    that was made before."""
    from accelerate import Accelerator

    held, model = Fully("fp32", True), causal("gpt2")
    accelerator = Accelerator(cpu=True)
    held.adopt(accelerator)
    copy = held.stand_in(model)
    assert copy is not None
    shards, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    assert all(isinstance(p, DTensor) for p in shards.parameters())
    shards(input_ids=IDS, labels=IDS).loss.backward()
    norm = accelerator.clip_grad_norm_(shards.parameters(), 0.1)
    assert type(norm) is torch.Tensor
    optimizer.step()
    before = {name: tensor.clone() for name, tensor in parameters(copy).items()}
    undone = held.undone(shards, copy)
    assert type(undone) is type(causal("gpt2"))
    assert isinstance(undone, nn.Module)
    assert largest_difference(before, parameters(undone)) > 0.05
    role = FullyTrained(shards, optimizer, accelerator, 0.0)
    assert largest_difference(role.state(True)["weights"], parameters(undone)) == 0
