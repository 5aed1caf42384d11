"""The model of memory against the models themselves, and by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from _plans import BASES, case_of, held, made, numbers_of
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from cores.errors import UserError
from cores.memory import Layout, micro_batches, needed, peak
from cores.models.adapters import hold_linears
from cores.models.layers import fuse_layers
from cores.shapes import Texts, kept, shape_from, weights


@pytest.mark.parametrize(
    "lie", [{"num_attention_heads": 31}, {"num_attention_heads": 8, "num_key_value_heads": 3}]
)
def test_heads_that_no_attention_has(lie: dict[str, int]) -> None:
    """A figure would be made of any numbers."""
    whole = {"hidden_size": 4096, "num_key_value_heads": 8}
    with pytest.raises(UserError, match=r"config.json: .* heads do not fit"):
        shape_from({**numbers_of("llama"), **whole, **lie}, "config.json")


@pytest.mark.parametrize("family", BASES)
def test_weights_are_counted(family: str) -> None:
    """All parameters, as a language model, as a classifier, and of adapters on every layer."""
    shape = shape_from(numbers_of(family), family)
    with torch.device("meta"):
        policy, scalar = (
            made(family),
            made(family, AutoModelForSequenceClassification, num_labels=1),
        )
        lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=3, target_modules="all-linear")
        adapted = get_peft_model(made(family), lora)
    assert shape.parameters() == policy.num_parameters()
    assert shape.parameters(scalar=True) == scalar.num_parameters()
    ours = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    between = 0 if family != "opt" else 2 * 3 * (64 + 32)  # the maps around OPT's layers
    assert ours == shape.adapters(3, None) + between


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_bytes_of_weights_held_in_bf16(family: str) -> None:
    model = hold_linears(made(family), torch.bfloat16)
    sizes = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    assert weights(shape_from(numbers_of(family), family), False, "bf16") == sum(sizes.values())


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_a_layer_keeps_is_counted(family: str, precision: str) -> None:
    """A layer more of a model of 3 keeps as much more as is counted, by what autograd saves: each
    storage once."""
    sizes = []
    for layers in (3, 4):
        key = {"gpt2": "n_layer", "bloom": "n_layer"}.get(family, "num_hidden_layers")
        numbers = {**BASES[family], key: layers, "num_key_value_heads": 4}
        model = fuse_layers(
            AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **numbers))
        )
        model.eval()  # no dropout
        found: dict[int, int] = {}
        alive: list[torch.Tensor] = []  # so that no address comes twice

        def note(x: torch.Tensor, found: Any = found, alive: Any = alive) -> torch.Tensor:
            if x.numel() % 53 == 0 and x.numel() > 212 * 8:  # no weight, and no row's statistic
                found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                alive.append(x)
            return x

        ids = torch.randint(1, 300, (4, 53))
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), autocast:
            model.base_model(input_ids=ids, use_cache=False)
        sizes.append(sum(found.values()))
    shape = shape_from({**numbers_of(family), "num_key_value_heads": 4}, family)
    each = kept(shape, 2 if precision == "bf16" else 4, lora=False)
    if shape.gated:  # on a CPU norms keep what they have divided, gates their SiLU
        each += 2 * 4 * shape.width + (2 if precision == "bf16" else 4) * shape.inner
    assert (sizes[1] - sizes[0]) / (4 * 53) == pytest.approx(each, rel=0.05)


def test_sixteen_bytes_a_trained_weight_however_they_are_spread() -> None:
    """Weights, gradients and two moments; each way of sharding divides its part by 8."""
    words = ("--model.precision", "bf16", "--ppo.minibatch_size", "64")
    count = case_of().policy.parameters()
    for shards, whole in {"none": (4, 4, 8), "zero3": (4 / 8, 4 / 8, 12 / 8)}.items():
        layout = Layout(8, shards)
        phases = needed(case_of(*words, "--ppo.microbatch_size", "1", layout=layout), "ppo")
        kinds = ("weights", "gradients", "optimizer")
        assert [held(phases, "actor", kind) / count for kind in kinds] == pytest.approx(whole)


def test_checkpointing_adapters_and_few_bits_each_need_less() -> None:
    more: list[str] = ["--model.precision", "bf16"]
    sizes = []
    for words in (
        [], ["--model.gradient_checkpointing", "true"], ["--ppo.lora.rank", "8"],
        ["--model.quantization", "bf16"],
    ):  # fmt: skip
        more += words
        sizes.append(peak(needed(case_of(*more), "ppo"))[1])
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_buffers_of_a_rollout_stay_where_they_are_small() -> None:
    """At 5% of the GPU or less they are there in an update, too."""
    case = case_of(
        "--model.precision", "bf16", "--ppo.lora.rank", "8", "--model.quantization", "bf16"
    )
    cache = held(needed(case, "ppo"), "engine", "cache")
    assert cache == 2 * 32 * 128 * 384 * 4096 * 2  # layers, rows, positions, width, bytes
    small, large = (replace(case, layout=Layout(card=cache * n)) for n in (15, 30))
    assert not [h for h in needed(small, "ppo")["scoring"] if h.what == "cache"]
    assert [h for h in needed(large, "ppo")["scoring"] if h.what == "cache"]


def test_lengths_have_their_mean() -> None:
    texts = Texts(prompt=10, longest=256, mean=61)
    lengths = texts.lengths(512)
    assert sum(lengths) / 512 == pytest.approx(61, rel=0.02)
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) <= 256
    assert Texts(10, 256, 256).lengths(3) == [256] * 3


def test_micro_batches_are_cut_as_the_trainer_does() -> None:
    case = case_of("--ppo.microbatch_size", "8")
    assert micro_batches(case, 32) == (8 * (256 + 128), 8 * 128, 4)
    by_tokens = case_of("--ppo.microbatch_tokens", "800")
    assert micro_batches(by_tokens, 5) == (2 * 384, 2 * 128, 3)
    assert micro_batches(by_tokens, 16, factor=4)[2] == 2  # 8 of 384 are 3,072 of 3,200
