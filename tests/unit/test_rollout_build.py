"""Which engine samples: `rollout.engine`, and what the fast one refuses by name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _engines import CAPTURABLE, REFUSED, STOPS
from _models import EOS, LAUNCH, PAD, causal, policy_of, ppo_config, toy_tokenizer
from torch import nn
from transformers import MistralConfig, PretrainedConfig

from cores.config import Config
from cores.errors import UserError
from cores.models.body import FAMILIES, attention_problem
from cores.rollout import build, build_engine, check_engine, stop_ids
from cores.rollout.build import graph_problem
from cores.rollout.graph.engine import GraphEngine
from cores.rollout.hf import HFEngine
from cores.runtime.launch import Launch

NAMES = {"bloom": "BloomForCausalLM", "gptj": "GPTJForCausalLM", "gemma2": "Gemma2ForCausalLM"}
BF16 = Launch(0, 1, torch.device("cpu"), "bf16")


def built(config: Config, model: Any, launch: Launch = LAUNCH) -> Any:
    """The engine for replies of 5 tokens."""
    return build_engine(config, model, toy_tokenizer(), 5, launch)


@pytest.mark.parametrize(
    ("engine", "made"), [("auto", GraphEngine), ("graph", GraphEngine), ("hf", HFEngine)]
)
@pytest.mark.parametrize("kind", CAPTURABLE)
def test_the_engine_asked_for(
    kind: str, engine: str, made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed where it runs; `hf` runs where the other could."""
    assert type(built(ppo_config(engine=engine), policy_of(kind))) is made
    assert "rollouts by" not in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["graph", "hf"])
@pytest.mark.parametrize("launch", [LAUNCH, BF16])
def test_options_reach_both_engines(engine: str, launch: Launch) -> None:
    """Invariants 2, 3, 16: temperature, minimum length, stop ids, precision."""
    options: dict[str, Any] = {"temperature": 0.7, "min_new_tokens": 2, "stop_token_ids": STOPS[1:]}
    model = policy_of("gpt2")
    made = built(ppo_config(engine=engine, **options), model, launch).sampling
    assert (made.pad_id, made.stop_ids) == (PAD, [EOS, *STOPS[1:]])
    assert (made.max_new_tokens, made.temperature, made.min_new_tokens) == (5, 0.7, 2)
    assert made.autocast is (torch.bfloat16 if launch is BF16 else None)
    assert made.text_matcher is None


@pytest.mark.parametrize("passes", ["auto", "captured"])
def test_captured_passes_are_lent_no_buffers(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold on to memory of their own; a rollout that made its buffers anew would only wait."""
    monkeypatch.setattr(build, "GraphEngine", lambda model, sampling, lends: lends)
    assert built(ppo_config(passes=passes), policy_of("gpt2")) is (passes == "auto")


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_families(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`auto` says which architecture is slow and why; `graph` is an error that names it."""
    model = policy_of(kind)
    said = f"{NAMES[kind]} is none of the model types {', '.join(FAMILIES)}"
    assert type(built(ppo_config(), model)) is HFEngine
    line = f"rollouts by Hugging Face generate, which is slow: {said}\n"
    assert line in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^rollout\.engine: graph cannot run here: ") as error:
        built(ppo_config(engine="graph"), model)
    assert said in str(error.value)
    assert str(error.value).endswith("Set it to auto or hf.")
    built(ppo_config(engine="hf"), model)
    assert "rollouts by" not in capsys.readouterr().out  # it was asked for


def rope(kind: str) -> PretrainedConfig:
    """Of a tiny Llama with a rotary embedding of this kind."""
    config = policy_of("llama").config
    config.rope_parameters = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4}
    return config


def test_refused_configurations() -> None:
    """Windows and angles that follow the longest row; a window that is off is none."""
    window = MistralConfig(sliding_window=8, architectures=["MistralForCausalLM"])
    assert attention_problem(window) == "MistralForCausalLM attends to a sliding window"
    assert attention_problem(MistralConfig(sliding_window=None)) is None
    off = causal("qwen2", use_sliding_window=False, sliding_window=8)
    on = causal("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    assert attention_problem(off.config) is None
    assert attention_problem(on.config) == "qwen2 attends to a sliding window"
    for kind in ("dynamic", "longrope"):
        said = f"the rotary embedding of LlamaForCausalLM is {kind}, which changes with the length"
        assert attention_problem(rope(kind)) == said
    for kind in ("default", "linear", "llama3", "yarn"):
        assert attention_problem(rope(kind)) is None
    for kind in CAPTURABLE:
        assert attention_problem(policy_of(kind).config) is None


def test_shards_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters as ZeRO-3 leaves them."""
    model = policy_of("gpt2")
    vars(next(model.parameters()))["ds_id"] = 0
    assert type(built(ppo_config(), model)) is HFEngine
    assert "which is slow: the weights are shards (ZeRO-3, FSDP2)\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot run here: the weights are shards"):
        built(ppo_config(engine="graph"), model)


def on_cuda(model: Any) -> Any:
    """`model` as it would be on a GPU, as far as it is asked."""
    return SimpleNamespace(
        parameters=model.parameters,
        modules=model.modules,
        config=model.config,
        device=torch.device("cuda"),
    )


def test_what_a_gpu_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton, and no layers in 8 bits, whose course depends on numbers; a CPU needs neither."""
    model = policy_of("gpt2")
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    assert graph_problem(on_cuda(model)) == "triton is not installed"
    assert graph_problem(model) is None
    monkeypatch.setattr(build, "find_spec", lambda name: object())
    assert graph_problem(on_cuda(model)) is None
    layer: Any = nn.Linear(2, 2)
    layer.init_8bit_state = lambda: None
    model.add_module("small", layer)
    said = "layers in 8 bits look for outliers, which a captured graph cannot"
    assert graph_problem(on_cuda(model)) == said
    assert graph_problem(model) is None


def test_an_engine_that_cannot_run_is_refused_before_the_training() -> None:
    """From the configuration alone; `auto` and `hf` always run."""
    window = MistralConfig(sliding_window=8, architectures=["MistralForCausalLM"])
    check_engine(ppo_config(engine="graph"), policy_of("llama").config, LAUNCH.device)
    with pytest.raises(UserError, match=r"graph cannot run here: MistralForCausalLM attends"):
        check_engine(ppo_config(engine="graph"), window, LAUNCH.device)
    for engine in ("auto", "hf"):
        check_engine(ppo_config(engine=engine), window, LAUNCH.device)


def test_a_stop_id_counts_once() -> None:
    """Named twice it would get its gradient twice where a reply may not stop yet."""
    assert stop_ids(ppo_config(stop_token_ids=[7, EOS, 7]).ppo, toy_tokenizer()) == [EOS, 7]
