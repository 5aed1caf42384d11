"""Stage 3 with replies of vLLM's CPU build; `bash scripts/test_vllm.sh` makes what it needs."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import ACCELERATE, NO_ROLES, PYTHON, ROOT, good, in_process, rows, run
from _models import EXCLUDED, LAUNCH, PROMPTS, causal, ppo_config, toy_tokenizer
from _resume import goes_on_exactly
from _tiny import make_gpt2, make_llama
from peft import TaskType

from cores.config import LoraSection
from cores.draws import uniforms
from cores.errors import UserError
from cores.models import add_lora
from cores.models.actor import plain_model
from cores.models.vocabulary import exclude_tokens
from cores.rollout import Rollout, build_engine, check_engine, push

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None, reason="no vLLM in this environment: bash scripts/test_vllm.sh"
)
BASES = {"gpt2": make_gpt2, "llama": make_llama}
VLLM = ["--rollout.engine", "vllm", "--rollout.cache_gb", "0.1", "--ppo.max_prompt_length", "64"]
LEARNS = "--ppo.updates 3 --ppo.actor_learning_rate 1e-2 --ppo.old_logprobs recompute".split()
WIDE = {
    "gpt2": {"n_embd": 64, "n_head": 2}, "gptj": {"n_embd": 64, "n_head": 2},
    "opt": {"hidden_size": 64, "num_attention_heads": 2, "word_embed_proj_dim": 64},
    "bloom": {"hidden_size": 64, "num_attention_heads": 2},
    "gpt_neox": {"hidden_size": 64, "num_attention_heads": 2},
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {}, "gemma2": {},
}  # fmt: skip
"""Shapes whose heads are as wide as vLLM's attention on CPUs wants them."""
GROUPED = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


def words_of(base: Path, files: dict[str, Path], out: Path) -> list[str]:
    """Arguments of a short run; GPT-2 has no template of its own."""
    words = good(base, files, out)
    return [word for word in words if "gpt2" not in base.parts or word not in NO_ROLES]


@pytest.fixture(scope="module", params=BASES)
def home(request: Any, files: dict[str, Path], tmp_path_factory: Any) -> tuple[Path, Path]:
    """A base, and a folder in whose run/ stages 1 and 2 are finished."""
    place = tmp_path_factory.mktemp(request.param)
    base = BASES[request.param](place / request.param, width=64)
    with contextlib.redirect_stdout(io.StringIO()):
        for stage in ("sft", "reward"):
            in_process(stage, words_of(base, files, place / "run"))
    return base, place


@pytest.mark.parametrize("lora", ["0", "4"])
def test_three_updates_and_going_on(
    home: tuple[Path, Path],
    files: dict[str, Path],
    lora: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The engine's log-probs are the trainer's behind every update, full and with adapters; a run
    that was stopped goes on with the same replies to the same tensors and figures."""
    base, place = home
    (tmp_path / "run").symlink_to(place / "run")

    def words(out: str) -> list[str]:
        options = [*VLLM, *LEARNS, "--ppo.lora.rank", lora]
        return [*words_of(base, files, tmp_path / out), *options]

    goes_on_exactly(monkeypatch, tmp_path, words)
    logged = rows(tmp_path / "straight" / "ppo" / "metrics.jsonl")
    assert len(logged) == 3
    for row in logged:
        assert row["rollout_logprob_gap"] < 1e-4
        assert row["rollout_ratio"] == pytest.approx(1, abs=1e-4)
        assert row["rollout_ratio_outside"] == 0
    assert abs(logged[2]["kl"]) > 1e-3  # the policy has moved, and so has vLLM's


def figures(
    home: tuple[Path, Path], files: dict[str, Path], out: Path, launcher: list[str]
) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl of stage 3 as processes of their own."""
    base, place = home
    out.mkdir()
    for stage in ("sft", "reward"):
        (out / stage).symlink_to(place / "run" / stage)
    words = [*words_of(base, files, out), *VLLM, *LEARNS]
    done = run("ppo", words, launcher, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return rows(out / "ppo" / "metrics.jsonl")


def test_two_processes(home: tuple[Path, Path], files: dict[str, Path], tmp_path: Path) -> None:
    """A copy on each, of weights that are put together where they are shards: figures are those of
    one process, as a reply depends on its seed alone."""
    alone = figures(home, files, tmp_path / "alone", PYTHON)
    for name in ("cpu2", "zero3"):
        launcher = [*ACCELERATE[:-1], str(ROOT / f"configs/accelerate/{name}.yaml")]
        for one, two in zip(alone, figures(home, files, tmp_path / name, launcher), strict=True):
            for key in ("score", "kl", "response_length", "ended", "policy_loss"):
                assert two[key] == pytest.approx(one[key], abs=1e-3), (name, key)
            assert two["rollout_logprob_gap"] < 1e-4


def engine_of(kind: str, lora: bool = False, shape: Any = None, **ppo: Any) -> Any:
    """vLLM on a random policy, whose weights are large."""
    model = causal(kind, **(WIDE[kind] or GROUPED), **(shape or {}))
    exclude_tokens(model, EXCLUDED)
    model.config.architectures = [type(model).__name__]  # as in a folder
    config = ppo_config(engine="vllm", **{"max_prompt_length": 40, "max_new_tokens": 12, **ppo})
    config = replace(config, rollout=replace(config.rollout, cache_gb=0.05))
    check_engine(config, model.config, LAUNCH.device)
    if lora:
        adapted = add_lora(model, LoraSection(rank=4), TaskType.CAUSAL_LM, "ppo.lora")
        model = plain_model(adapted)
    return build_engine(config, model, toy_tokenizer(), 12, LAUNCH, trains=True)


def sample(engine: Any, prompts: list[list[int]] = PROMPTS, update: int = 0) -> Rollout:
    """A rollout with the numbers of an update."""
    return engine.generate(prompts, uniforms(len(prompts), 12, 0, "replies", update))


@torch.no_grad()
def moved(model: Any) -> None:
    """All trained weights are others."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", WIDE)
def test_families(kind: str, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs are the trainer's to 1e-4 (BLOOM 5e-4) behind every push, with a temperature, a
    minimum length and several stop ids; excluded ids never come; a reply depends on its own
    numbers alone."""
    monkeypatch.setattr("cores.rollout.vllm.LIMITS", {False: 5e-4 if kind == "bloom" else 1e-4})
    monkeypatch.setattr("cores.rollout.vllm.COMPARED", 99)
    options = {"temperature": 0.7, "min_new_tokens": 3, "stop_token_ids": [5, 6, 7]}
    engine, replies = engine_of(kind, lora, **options), []
    for _ in range(3):
        rollout = sample(engine)
        replies.append(rollout.logprobs[:, :4])
        said = rollout.response_ids[rollout.response_mask]
        assert not torch.isin(said, torch.tensor(EXCLUDED)).any()
        assert rollout.lengths.min() > 3
        alone = engine.generate(PROMPTS[2:3], uniforms(1, 12, 0, "replies", 0, first=2))
        assert alone.row(0) == rollout.row(2)
        moved(engine.model)
    assert not any(torch.equal(replies[0], other) for other in replies[1:])


@pytest.fixture(scope="module")
def engines() -> Callable[[str], Any]:
    """One engine a kind, made when it is first asked for."""
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            positions = {"gpt2": "n_positions", "llama": "max_position_embeddings"}[kind]
            made[kind] = engine_of(kind, shape={positions: 512}, max_prompt_length=400)
        moved(made[kind].model)
        return made[kind]

    return get


def without(lost: str) -> Callable[[Any], Iterator[tuple[str, torch.Tensor]]]:
    """`push.weights` that forgets what has such a name."""
    all_of = push.weights
    return lambda model: ((name, x) for name, x in all_of(model) if lost not in name)


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
    engines: Any, kind: str, lost: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole weight, or half of one that vLLM has fused."""
    engine = engines(kind)
    with monkeypatch.context() as patch:
        patch.setattr(push, "weights", without(lost))
        with pytest.raises(UserError, match=said):
            sample(engine)
    sample(engine)


def test_a_stale_weight_is_named(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of one weight that is not the policy's by one part in a million."""
    engine, end = engines("gpt2"), engines("gpt2").llm.finish_weight_update

    def spoiled() -> None:
        end()
        engine.llm.apply_model(lambda m: m.transformer.h[1].attn.c_attn.weight[3, 3].mul_(1 + 1e-6))

    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "finish_weight_update", spoiled)
        with pytest.raises(UserError, match=r"transformer\.h\.1\.attn\.c_attn\.weight is not what"):
            sample(engine)
    sample(engine)


def test_a_packed_head_shows(engines: Any) -> None:
    """A head that multiplies by a copy of its weight, which keeps the old one: what vLLM does on a
    CPU with one that is tied to the embedding, unless it is told not to."""
    engine = engines("gpt2")
    sample(engine)
    (head,) = engine.llm.apply_model(lambda module: module.lm_head)
    plain, old = head.cpu_linear, head.weight.clone()
    moved(engine.model)

    def packed(module: Any) -> None:
        module.lm_head.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(x, old)

    end = engine.llm.finish_weight_update
    engine.llm.finish_weight_update = lambda: (end(), engine.llm.apply_model(packed))
    with pytest.raises(UserError, match=r"its log-probs of 4 replies are \S+ nats a token from"):
        sample(engine)
    del engine.llm.finish_weight_update
    head.cpu_linear = plain
    sample(engine)


def test_a_cache_of_prompts_shows(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other weights made of a long prompt is no longer there."""
    engine, prompts = engines("llama"), [[5 + i % 40 for i in range(380)]] * 2
    sample(engine, prompts)
    moved(engine.model)
    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "reset_prefix_cache", lambda: True)
        with pytest.raises(UserError, match=r"its log-probs of 2 replies are"):
            sample(engine, prompts)
    sample(engine, prompts)


def test_what_is_no_number_is_not_pushed(engines: Any) -> None:
    """It is named; the engine goes on behind it."""
    engine = engines("llama")
    weight = engine.model.model.layers[1].mlp.up_proj.weight.data
    kept, weight[0, 0] = weight[0, 0].clone(), torch.nan
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not finite"):
        sample(engine)
    weight[0, 0] = kept
    sample(engine)
