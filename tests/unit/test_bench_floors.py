"""The floors' formulas against counts by hand, and their shapes against the models'."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from scripts.bench import floors
from scripts.bench.floors import Rates, Shape, Work
from scripts.bench.made import random_model
from scripts.bench.workloads import WORKLOADS, shape

SMALL = Shape(layers=2, width=4, kv_width=2, body=100, head=30, trained=150, trained_linear=130)


def test_forward_by_hand() -> None:
    """Rows of 2 + 1 and 2 + 2 tokens: 7 through the body, 1 + 2 through the head; pairs of
    positions 1 + 2 + 3 and 1 + 2 + 3 + 4, each 2 * 4 for the product and 2 * 4 for the mean."""
    found = floors.forward(SMALL, 2, [1, 2], at_head=[1, 2])
    assert found == 2 * 100 * 7 + 2 * 30 * 3 + 2 * (2 * 4 + 2 * 4) * (6 + 10)


def test_decode_steps_by_hand() -> None:
    """Two rows, prompts of 3, replies of 1 and 3: after the prompts one row decodes two tokens."""
    prompts, first, second = floors.rollout(SMALL, 3, [1, 3], size=2)
    cache = 2 * 2 * 2 * 2  # keys and values, layers, width, bytes
    assert prompts == Work(130 * 2 + 2 * 3 * cache, floors.forward(SMALL, 3, [0, 0], [1, 1]))
    assert first == Work(130 * 2 + 4 * cache, 2 * 130 + 4 * 2 * 4 * 4)
    assert second == Work(130 * 2 + 5 * cache, 2 * 130 + 4 * 2 * 4 * 5)


def test_a_step_of_equal_lengths_has_a_decode_step_less_than_tokens() -> None:
    assert len(floors.rollout(SMALL, 3, [4] * 5, size=2)) == 1 + 3


def test_training_is_three_times_the_forward_pass() -> None:
    """Where all weights train. Weights are read twice; gradients are fp32."""
    work, again = floors.training(SMALL, 2, [1, 2], size=2, scalar=False, steps=2)
    assert work == again
    assert 2 * work.operations == 3 * floors.forward(SMALL, 2, [1, 2], [1, 2])
    assert work.bytes == 2 * 130 * 2 + 4 * 150


def test_frozen_weights_have_no_gradient() -> None:
    """Adapters of 13 of 130 weights: backward is 2 + .2 a weight and token, attention's is twice
    its forward."""
    adapted = replace(SMALL, trained=13, trained_linear=13)
    (work,) = floors.training(adapted, 2, [1], size=2, scalar=False, steps=1)
    linear, attention = 2 * 100 * 3 + 2 * 30, 4 * 2 * 4 * 6
    assert work.operations == pytest.approx(linear * (1 + 1.1) + attention * 3)
    assert work.bytes == 2 * 130 * 2 + 4 * 13


def test_the_optimizer_moves_seven_numbers_and_a_copy() -> None:
    assert floors.optimizer(SMALL, 4, steps=2) == [Work(150 * 28, 0.0)] * 2
    assert floors.optimizer(SMALL, 2, steps=1) == [Work(150 * 30, 0.0)]


def test_floors_of_works() -> None:
    """Of 4 and 1 seconds of bytes and 1 and 3 of operations."""
    works, rates = [Work(40, 10), Work(10, 30)], Rates(bytes=10, operations=10)
    assert floors.overlapped(works, rates) == 4 + 3
    assert floors.in_turn(works, rates) == 9


def test_shape_of_models() -> None:
    """GPT-2's linear maps are 12 d^2 a layer; its output layer is the embedding. Adapters of rank
    2 on d -> 3d, d -> d, d -> 4d and 4d -> d add (4 + 2 + 5 + 5) d * 2."""
    config = shape("tiny")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    scalar = random_model(config, torch.device("meta"), scalar=True)
    d, body = 128, 12 * 128**2 * 4
    found = floors.shape_of(model)
    assert (found.layers, found.width, found.kv_width) == (4, d, d)
    assert (found.body, found.head) == (body, 2048 * d)
    assert found.trained == model.num_parameters()
    assert found.trained_linear == body + 2048 * d
    assert floors.shape_of(scalar).body == body
    assert floors.shape_of(scalar).head == d
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules="all-linear")
    with torch.device("meta"):
        adapted = floors.shape_of(get_peft_model(model, lora).get_base_model())
    more = 4 * (4 + 2 + 5 + 5) * d * 2
    assert (adapted.body, adapted.trained, adapted.trained_linear) == (body + more, more, more)


def test_a_whole_step_has_every_phase() -> None:
    """W1 at the counted floor of the published table: about .45 s on an H100, one after the other.

    124M weights without positions: 12 * 12 * 768^2 in layers, 50257 * 768 in the output layer.
    """
    gpt2 = Shape(12, 768, 768, 84_934_656, 38_597_376, 124_439_808, 123_532_032)
    works = floors.step(gpt2, gpt2, gpt2, WORKLOADS["W1"], [128] * 128, actor=True)
    assert len(works["rollout"]) == 128
    assert len(works["update/actor"]) == 16
    assert len(works["update/optimizer"]) == 2 * 16
    rates = Rates(floors.GPU_BYTES, floors.GPU_OPERATIONS)
    total = sum(floors.in_turn(series, rates) for series in works.values())
    assert total == pytest.approx(0.45, rel=0.15)
    captured = floors.step(gpt2, gpt2, gpt2, WORKLOADS["W1"], [128] * 128, True, ["critic"])
    assert len(captured["update/optimizer"]) == len(captured["update/actor"]) == 16
    assert captured["update/critic"] == works["update/critic"] + captured["update/optimizer"]
    alone = floors.step(gpt2, gpt2, gpt2, WORKLOADS["W1"], [128] * 128, actor=False)
    assert alone["score/actor"] == []
