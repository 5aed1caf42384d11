"""Every family through all three stages, and the families that cannot go through all.

Each starts from a random model whose pad is its eos, so that the vocabulary grows in stage 1.
"""

import contextlib
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _families import FAMILIES, PACKABLE, family_config
from _helpers import GPT2, in_process, record, rows, sources
from _tokenizers import gpt2_like
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    MambaConfig,
)

STAGES = ("sft", "reward", "ppo")
SHORT = """--sft.max_steps 2 --sft.batch_size 4 --sft.microbatch_size 2 --sft.max_length 120
--reward.max_steps 2 --reward.batch_size 4 --reward.microbatch_size 2 --reward.max_length 60
--reward.calibration_samples 8 --reward.calibration_tokens 4
--ppo.updates 2 --ppo.batch_size 4 --ppo.minibatch_size 4 --ppo.microbatch_size 2 --ppo.epochs 1
--ppo.max_prompt_length 52 --ppo.max_new_tokens 4 --ppo.eval_prompts 0
--ppo.actor_learning_rate 1e-3""".split()
CAUSAL = ("sft", "ppo")
SCALAR = ("reward", "ppo/critic")


def make_base(config: Any, folder: Path) -> Path:
    """A random model of `config` and its tokenizer, in a folder."""
    tokenizer = gpt2_like()
    config.vocab_size = len(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, tokenizer.eos_token_id)
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def words(base: Path, files: dict[str, Path], out: Path) -> list[str]:
    """Arguments of a run of a few steps."""
    place = ["--model.path", str(base), "--output_dir", str(out)]
    return ["--config", str(GPT2), *sources(files), *SHORT, *place]


@pytest.fixture(scope="module", params=FAMILIES)
def chain(
    request: Any, tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]
) -> tuple[Path, Path]:
    """(base, output_dir) of a family after all stages; stage 1 packed where the family can be."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    base, out = make_base(family_config(kind), folder / "base"), folder / "run"
    packing = ["--sft.packing", str(kind in PACKABLE).lower()]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for stage in STAGES:
            in_process(stage, [*words(base, files, out), *packing])
    assert ("packed: 45 rows in 23 of 120 tokens" in printed.getvalue()) == (kind in PACKABLE)
    return base, out


def test_the_chain(chain: tuple[Path, Path]) -> None:
    """Invariants 1, 8, 9, 12, 30: stock classes load every folder whole, ties and all; log-probs
    while sampling are the actor's; before the first step actor = reference; calibrated scores."""
    base, out = chain
    start = AutoModelForCausalLM.from_pretrained(base)
    for stage in CAUSAL:
        model, info = AutoModelForCausalLM.from_pretrained(out / stage, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(out / stage)
        assert not any(info.values()), info
        assert type(model) is type(start)
        size = model.config.vocab_size
        assert len(tokenizer) == start.config.vocab_size + 1
        assert size == len(tokenizer)
        excluded = [tokenizer.pad_token_id, *range(len(tokenizer), size)]
        assert model.generation_config.suppress_tokens == excluded
        assert tied(model) == tied(start)
        kept = model.config.to_dict()
        rates = {k: v for k, v in start.config.to_dict().items() if "drop" in k}
        assert {k: kept[k] for k in rates} == rates
    for place in SCALAR:
        scalar, info = AutoModelForSequenceClassification.from_pretrained(
            out / place, output_loading_info=True
        )
        assert not any(info.values()), info
        assert scalar.score.bias is None
        assert scalar.config.reward_mean == record(out / "reward")["reward_mean"]
    first, second = rows(out / "ppo" / "metrics.jsonl")
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert abs(second["kl"]) > 1e-6  # the actor has moved
    assert first["rollout_logprob_gap"] < 1e-4
    for update in (first, second):
        assert update["clip_fraction"] == 0
        assert all(math.isfinite(value) for value in update.values())
    losses = [row["loss"] for row in rows(out / "sft" / "metrics.jsonl")]
    assert losses == pytest.approx([math.log(len(tokenizer))] * 2, rel=0.1)


def tied(model: Any) -> bool:
    """Whether the head is the embedding."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in PACKABLE])
def test_packing_is_refused(kind: str, files: dict, tmp_path: Path, refused: Any) -> None:
    """Invariant 27: where the trial shows that packed rows mix, before anything is written."""
    base = make_base(family_config(kind), tmp_path / "base")
    options = [*words(base, files, tmp_path / "run"), "--sft.packing", "true"]
    said = refused("sft", options, tmp_path / "run")
    assert f"sft.packing: {'Bloom' if kind == 'bloom' else 'OPT'}ForCausalLM mixes rows" in said
    assert said.endswith("Set sft.packing false.")


def test_a_family_without_a_classifier(
    files: dict, tmp_path: Path, call: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 25: stage 1 trains it and says what will not work; stage 2 refuses at once, with
    the architecture's name and a remedy, before a model is loaded."""
    config = MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4, time_step_rank=2)
    out = tmp_path / "run"
    options = words(make_base(config, tmp_path / "base"), files, out)
    status, printed, _ = call("sft", options)
    assert status == 0
    assert "note: MambaForCausalLM has no sequence-classification class" in printed
    monkeypatch.setattr("cores.data.preference_data", None)
    said = refused("reward", options, out)
    assert "model.path: MambaForCausalLM has no sequence-classification class" in said
    assert "Llama" in said
