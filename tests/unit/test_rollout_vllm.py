"""`VllmEngine` on a stand-in for vLLM (_vllm.py): what is pushed, proven and refused. The real one:
tests/integration/test_vllm.py."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import (
    EOS,
    EXCLUDED,
    KINDS,
    LAUNCH,
    LORA,
    PROMPTS,
    causal,
    make_trainer,
    policy_of,
    ppo_config,
    toy_tokenizer,
)
from _vllm import LLM, forget, stand_in
from peft import TaskType

from cores.draws import uniforms
from cores.errors import UserError
from cores.models import add_lora
from cores.models.actor import plain_model
from cores.rollout import Rollout, build_engine, check_engine, push
from cores.rollout.graph.engine import GraphEngine


@pytest.fixture
def engine_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """An engine on a policy, its copy one of other weights."""

    def engine(kind: str, lora: bool = False, world: int = 1, **ppo: Any) -> Any:
        stand_in(monkeypatch, causal(kind, seed=9))
        model = policy_of(kind)
        if lora:
            model = plain_model(add_lora(model, LORA, TaskType.CAUSAL_LM, "ppo.lora"))
        config, launch = ppo_config(engine="vllm", **ppo), replace(LAUNCH, world=world)
        return build_engine(config, model, toy_tokenizer(), 6, launch, trains=True)

    yield engine
    forget()


def sample(engine: Any, update: int = 0) -> Rollout:
    """A rollout with the numbers of an update."""
    return engine.generate(PROMPTS, uniforms(len(PROMPTS), 6, 0, "replies", update))


@torch.no_grad()
def moved(model: Any) -> None:
    """All trained weights are others."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_as_it_is_now(
    engine_of: Any, kind: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tied and untied heads, fused layers, adapters: log-probs are the trainer's behind every
    change, with a temperature and a minimum length; excluded ids never come; the weights and their
    mode stay as they were; a reply depends on its own numbers alone."""
    monkeypatch.setattr("cores.rollout.vllm.LIMITS", {False: 1e-5})
    engine = engine_of(kind, lora, temperature=0.7, min_new_tokens=2, stop_token_ids=[5, 6, 7])
    engine.model.train()
    for update in range(3):
        before = {name: x.clone() for name, x in engine.model.state_dict().items()}
        rollout = sample(engine, update)
        assert engine.model.training
        assert all(torch.equal(x, before[n]) for n, x in engine.model.state_dict().items())
        said = rollout.response_ids[rollout.response_mask]
        assert not torch.isin(said, torch.tensor(EXCLUDED)).any()
        assert rollout.lengths.min() > 2
        assert rollout.entropy is None
        alone = engine.generate(PROMPTS[2:3], uniforms(1, 6, 0, "replies", update, first=2))
        assert alone.row(0) == rollout.row(2)
        moved(engine.model)
    assert len({p.seed for p in engine.llm.params} | {0}) == 2


def test_what_vllm_is_told(engine_of: Any) -> None:
    """Of the configuration, a reply, and the launch."""
    ppo: dict[str, Any] = {"temperature": 0.7, "min_new_tokens": 2, "stop_token_ids": [7]}
    engine = engine_of("gpt2", world=2, max_prompt_length=50, batch_size=8, **ppo)
    sample(engine)
    told = engine.llm.params[0]
    assert (told.temperature, told.min_tokens, told.max_tokens) == (0.7, 2, 6)
    assert (told.stop_token_ids, told.ignore_eos, told.logprobs) == ([EOS, 7], True, 0)
    assert len({p.seed for p in engine.llm.params}) == len(PROMPTS)
    made = engine.llm.options
    assert (made["max_num_seqs"], made["max_model_len"]) == (4, 56)
    assert made["kv_cache_memory_bytes"] == 4 * 2**30
    assert made["distributed_executor_backend"] == "external_launcher"
    assert made["dtype"] == torch.float32
    assert "distributed_executor_backend" not in engine_of("gpt2").llm.options


def test_a_text_ends_a_reply(engine_of: Any) -> None:
    """At the first token that completes one behind the minimum, though vLLM goes on; its
    log-probs are those of as many tokens."""
    engine = engine_of("gpt2", min_new_tokens=1)
    whole = sample(engine)
    met: Any = lambda ids, scores: ids[:, -1] % 3 == 0  # noqa: E731
    engine.sampling = replace(engine.sampling, text_matcher=met)
    cut = sample(engine)
    for i, row in enumerate(whole.response_ids.tolist()):
        ends = [t + 1 for t, token in enumerate(row) if t >= 1 and token % 3 == 0]
        length = min(ends[0] if ends else 6, int(whole.lengths[i]))
        assert int(cut.lengths[i]) == length
        assert torch.equal(cut.logprobs[i, :length], whole.logprobs[i, :length])
    assert bool((cut.lengths < whole.lengths).any())


def test_memory_is_lent(engine_of: Any) -> None:
    """On a GPU: weights come back before the push, the cache behind it."""
    engine = engine_of("gpt2")
    engine.on_gpu = True
    sample(engine)
    found = engine.llm.calls
    assert found == ["wake weights", "push", "wake kv_cache", "generate", "sleep 1"]


@pytest.mark.parametrize(
    ("kind", "lost", "said"),
    [
        ("gpt2", "h.1.mlp.c_fc.bias", r"nothing was pushed to transformer\.h\.1\.mlp\.c_fc\.bias"),
        ("llama", "layers.1.mlp.up_proj",
         r"layers\.1\.mlp\.gate_up_proj\.weight is not what was pushed to it \(\S*gate_proj"),
        ("llama", "layers.0.self_attn.k_proj", r"qkv_proj\.weight is not .*q_proj.*, .*v_proj"),
        ("llama", "lm_head", r"nothing was pushed to lm_head\.weight"),
    ],
)  # fmt: skip
def test_what_is_forgotten_is_named(
    engine_of: Any, kind: str, lost: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole weight, or a part of one that vLLM has fused, though it be zeros."""
    engine, every = engine_of(kind), push.weights
    kept = lambda model: ((name, x) for name, x in every(model) if lost not in name)  # noqa: E731
    monkeypatch.setattr(push, "weights", kept)
    with pytest.raises(UserError, match=said):
        sample(engine)


def test_a_stale_weight_is_named(engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number that is off by two parts in a million."""
    engine, end = engine_of("llama"), LLM.finish_weight_update

    def spoiled(self: Any) -> None:
        end(self)
        self.model.inner.model.layers[1].self_attn.k_proj.weight[3, 3] *= 1 + 2e-6

    sample(engine)
    monkeypatch.setattr(LLM, "finish_weight_update", spoiled)
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.qkv_proj\.weight is not what"):
        sample(engine)


def test_a_cache_of_prompts_shows(engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be emptied, and one that says it was: by log-probs."""
    engine = engine_of("gpt2")
    sample(engine)
    moved(engine.model)
    monkeypatch.setattr(LLM, "reset_prefix_cache", lambda self: False)
    with pytest.raises(UserError, match="its cache of prompts could not be emptied"):
        sample(engine)
    monkeypatch.setattr(LLM, "reset_prefix_cache", lambda self: True)
    with pytest.raises(UserError, match=r"its log-probs of 4 replies are \S+ nats a token from"):
        sample(engine)


def test_what_is_no_number_is_not_pushed(engine_of: Any) -> None:
    """It is named before vLLM has it."""
    engine = engine_of("llama")
    engine.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not finite"):
        sample(engine)


def test_names_are_those_of_the_folder(engine_of: Any) -> None:
    """transformers has others in memory for GPT-NeoX's head."""
    names = [name for name, _ in push.weights(policy_of("gpt_neox"))]
    assert "embed_out.weight" in names
    adapted = plain_model(add_lora(policy_of("llama"), LORA, TaskType.CAUSAL_LM, "ppo.lora"))
    assert [n for n, _ in push.weights(adapted)] == [n for n, _ in push.weights(policy_of("llama"))]


def test_updates_of_stage_3(engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is stage 3's; its log-probs serve as the old ones, and the update tells the
    entropy that it does not."""
    stand_in(monkeypatch, causal("gpt2", seed=9))
    trainer = make_trainer("gpt2", engine="vllm")
    stats = [trainer.step(PROMPTS)[1] for _ in range(2)]
    assert stats[0]["rollout_logprob_gap"] < 1e-4
    assert stats[0]["rollout_ratio"] == pytest.approx(1, abs=1e-4)
    assert stats[0]["rollout_ratio_outside"] == 0
    assert "rollout_ratio" not in stats[1]
    assert stats[1]["entropy"] > 0


@pytest.mark.parametrize(
    ("kind", "model", "said"),
    [
        ("gpt2", {"attention": "prefix"}, "model.attention is prefix"),
        ("gpt2", {"quantization": "8bit"}, r"its weights are held in 8bit \(model\.quantization\)"),
        ("bloom", {}, "vLLM 0.30.0 has no BloomForCausalLM"),
    ],
)
def test_refused_by_name(
    engine_of: Any, kind: str, model: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From configurations alone."""
    stand_in(monkeypatch, None)
    config, asked = ppo_config(engine="vllm"), policy_of(kind).config
    config = replace(config, model=replace(config.model, **model))
    with pytest.raises(UserError, match=rf"^rollout\.engine: vllm cannot run here: {said}\. Set"):
        check_engine(config, asked, LAUNCH.device)
    asked.is_encoder_decoder = True
    with pytest.raises(UserError, match=r"has an encoder|prefix|held in"):
        check_engine(config, asked, LAUNCH.device)


def test_it_must_be_there_in_its_version(engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs it; what wants few replies does without."""
    config, asked = ppo_config(engine="vllm"), policy_of("gpt2")
    stand_in(monkeypatch, None, version="0.32.1")
    with pytest.raises(UserError, match=r"vLLM is 0\.32\.1, and must be 0\.30\.\* \(pip install "):
        check_engine(config, asked.config, LAUNCH.device)
    monkeypatch.setattr("cores.rollout.vllm.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"vLLM is not installed \(pip install .*vllm==0\.30\.0"):
        check_engine(config, asked.config, LAUNCH.device)
    sys.modules.pop("vllm")
    assert type(build_engine(config, asked, toy_tokenizer(), 5, LAUNCH)) is GraphEngine


def test_what_keeps_it_from_starting_is_said(
    engine_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, *args: Any, **options: Any) -> None:
        raise ValueError("no memory\nfor keys")

    monkeypatch.setattr(LLM, "__init__", fails)
    with pytest.raises(UserError, match=r"vllm does not start: ValueError: no memory for keys\."):
        engine_of("gpt2")


def test_one_seed_a_reply(engine_of: Any) -> None:
    """Numbers that differ in their first two places make other seeds."""
    engine, numbers = engine_of("gpt2"), torch.full((4, 6), 0.5)
    numbers[1, 0] += 2**-24
    numbers[2, 1] += 2**-24
    engine.generate(PROMPTS, numbers)
    seeds = [p.seed for p in engine.llm.params]
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 3
