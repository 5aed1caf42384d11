"""Stage 1 with prefix attention, weights that are random, frozen or put before the layers: the
loss, what is saved, what goes on exactly, and what later stages say."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import good, in_process, record, rows
from _resume import apart, checkpoint, until
from _tiny import POSITIONS, _save, words
from huggingface_hub import constants
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmConfig, GlmForCausalLM

PREFIX = ["--model.attention", "prefix"]
EVERY = ["--checkpoint.every_steps", "1"]
VIRTUAL = ["--sft.prefix_tokens", "3", "--sft.max_length", str(POSITIONS - 3)]


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random GLM, with the tokenizer of the tiny Llama."""
    config = GlmConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    return _save(GlmForCausalLM, config, words(), tmp_path_factory.mktemp("glm"))


def told(base: Path, files: dict[str, Path], out: Path, *more: str) -> list[str]:
    """Arguments of a run of three steps at a rate at which they show."""
    return [*good(base, files, out), "--sft.learning_rate", "1e-2", *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a whole model, by stock transformers."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.state_dict()


def resumed(monkeypatch: pytest.MonkeyPatch, words: Any, tmp_path: Path) -> dict[str, Any]:
    """The checkpoint of a run that was stopped on the way, after it was compared with that of one
    that was not."""
    until(monkeypatch, "sft", [*words(tmp_path / "straight"), *EVERY], 2)
    for step in (1, 2):
        until(monkeypatch, "sft", [*words(tmp_path / "stopped"), *EVERY], step)
    found = checkpoint(tmp_path / "stopped", "sft", 2)
    assert apart(found, checkpoint(tmp_path / "straight", "sft", 2)) == []
    return found


def test_prefix_attention(glm: Path, files: dict, tmp_path: Path, call: Any) -> None:
    """The held-out loss before training is that under a mask made here, and falls. Stages 2 and 3
    follow: replies are sampled as they are scored, and the policy starts as the reference. A stage
    that would read prompts causally is refused."""
    out = tmp_path / "run"
    one = ["--sft.max_steps", "20", "--data.sft.test_path", str(files["sft"])]
    in_process("sft", told(glm, files, out, *PREFIX, *one, "--data.sft.limit", "8"))
    found = record(out / "sft")["metrics"]
    assert found["test_loss_before"] == pytest.approx(by_hand(glm, files), rel=1e-5)
    assert found["test_loss"] < found["test_loss_before"] / 2
    for stage in ("reward", "ppo"):
        words = told(glm, files, out, "--ppo.epochs", "1")
        status, _, err = call(stage, words)
        assert status != 0
        assert "model.attention: causal here, but" in err
        assert "was trained with prefix" in err
        status, printed, err = call(stage, [*words, *PREFIX])
        assert status == 0, err
        assert "which is slow: model.attention is prefix" in printed
    first, second = rows(out / "ppo" / "metrics.jsonl")
    assert first["rollout_logprob_gap"] < 1e-4
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert abs(second["kl"]) > 0
    assert weights(out / "ppo")


@torch.no_grad()
def by_hand(base: Path, files: dict[str, Path]) -> float:
    """Nats a token of the replies of the first eight rows, each alone under a mask of its own."""
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    total, tokens = 0.0, 0
    for row in rows(files["sft"])[:8]:
        text = "\n".join(filter(None, (row["instruction"], row["input"])))
        turns = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        reply = tokenizer(row["output"] + "<|im_end|>")["input_ids"]
        ids = torch.tensor([prompt + reply])
        seen = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        seen[:, : len(prompt)] = True
        low = torch.finfo(torch.float32).min
        mask = torch.zeros(seen.shape).masked_fill(~seen, low)[None, None]
        logits = model(ids, attention_mask=mask).logits[0, len(prompt) - 1 : -1]
        logits[:, tokenizer.pad_token_id] = -1e4
        total += cross_entropy(logits, torch.tensor(reply), reduction="sum").item()
        tokens += len(reply)
    return total / tokens


def test_prefix_attention_with_adapters(llama: Path, files: dict, tmp_path: Path) -> None:
    """peft calls the model's forward pass by name, which must be ours there too."""
    out = tmp_path / "run"
    more = ["--sft.lora.rank", "4", "--data.sft.test_path", str(files["sft"])]
    in_process("sft", told(llama, files, out, *PREFIX, *more, "--data.sft.limit", "8"))
    before = record(out / "sft")["metrics"]["test_loss_before"]
    assert before == pytest.approx(by_hand(llama, files), rel=1e-5)
    assert weights(out / "sft")


def test_random_weights(llama: Path, files: dict, tmp_path: Path) -> None:
    """From config.json and tokenizer alone: the same for a seed, others for another; stage.json
    names the folder's files and that no weights were read; a whole model comes out."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in llama.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    found = []
    for name, seed in (("one", "0"), ("again", "0"), ("other", "1")):
        more = ["--model.from_config", "true", "--seed", seed, "--sft.max_steps", "1"]
        in_process("sft", told(bare, files, tmp_path / name, *more, "--sft.learning_rate", "1e-9"))
        found.append(weights(tmp_path / name / "sft"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found[0][name], found[1][name])
    assert (found[0][name] - found[2][name]).abs().max() > 1e-2
    assert found[0][name].std() == pytest.approx(0.02, rel=0.1)  # Llama's initializer_range
    parent = record(tmp_path / "one" / "sft")["parents"]["base"]
    assert parent["from_config"] is True
    assert "config.json" in parent["files"]


def test_random_weights_need_no_adapters(
    llama: Path, files: dict, call: Any, tmp_path: Any
) -> None:
    more = ["--model.from_config", "true", "--sft.lora.rank", "2"]
    status, _, err = call("sft", told(llama, files, tmp_path / "run", *more))
    assert status != 0
    assert "model.from_config: its random weights are nowhere to be read again" in " ".join(
        err.split()
    )


def test_some_weights_alone_are_trained(
    llama: Path, files: dict, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a pattern names change, the others not at all, and checkpoints have them alone."""
    more = ["--model.trainable", "['model.layers.1.mlp.*', 'model.norm.*']"]
    out = tmp_path / "run"
    status, printed, err = call("sft", told(llama, files, out, *more))
    assert status == 0, err
    assert "trained: 4 of 21 tensors, 6,176 of " in printed
    before, after = weights(llama), weights(out / "sft")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {f"model.layers.1.mlp.{n}_proj.weight" for n in ("up", "gate", "down")}
    assert moved == expected | {"model.norm.weight"}
    found = resumed(monkeypatch, lambda to: told(llama, files, to, *more), tmp_path)
    assert {name.split(":")[1] for name in found} == moved


def test_a_pattern_that_fits_nothing(
    llama: Path, files: dict, tmp_path: Path, refused: Any
) -> None:
    more = ["--model.trainable", "['model.layers.*', 'modle.norm.*']"]
    said = refused("sft", told(llama, files, tmp_path / "run", *more), tmp_path / "run")
    assert "model.trainable: 'modle.norm.*' fits no weight of LlamaForCausalLM" in said
    assert "model.embed_tokens.weight" in said


def test_prefixes_take_positions(glm: Path, files: dict, tmp_path: Path, refused: Any) -> None:
    """They stand before a row, which then ends later."""
    more = ["--sft.prefix_tokens", "3", "--sft.max_length", str(POSITIONS - 2)]
    said = refused("sft", told(glm, files, tmp_path / "run", *more), tmp_path / "run")
    assert f"sft.max_length + sft.prefix_tokens: {POSITIONS + 1} tokens are more" in said


@pytest.mark.parametrize("attention", [[], PREFIX])
def test_trained_prefixes(
    attention: list[str], glm: Path, files: dict, tmp_path: Path, call: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Keys and values alone are trained and saved, for peft to load; later stages refuse them."""
    more = [*VIRTUAL, *attention]
    out = tmp_path / "run"
    status, printed, err = call("sft", told(glm, files, out, *more, "--sft.max_steps", "20"))
    assert status == 0, err
    assert f"trained: 1 of 26 tensors, {3 * 2 * 2 * 16} of " in printed
    losses = [row["loss"] for row in rows(out / "sft" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert not list((out / "sft").glob("*.safetensors"))
    loaded = AutoPeftModelForCausalLM.from_pretrained(out / "sft" / "adapter")
    assert loaded.prompt_encoder.default.embedding.weight.shape == (3, 2 * 2 * 16)
    if attention:
        found = resumed(monkeypatch, lambda to: told(glm, files, to, *more), tmp_path)
        assert len({name.split(":")[1] for name in found}) == 1
    else:
        status, _, err = call("reward", told(glm, files, out))
        assert status != 0
        assert "holds keys and values that stand before every row" in " ".join(err.split())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--sft.lora.rank", "2"], "sft.prefix_tokens: stands beside sft.lora.rank"),
        (["--sft.packing", "true"], "sft.packing: rows side by side cannot each have"),
        (["--model.gradient_checkpointing", "true"], "model.gradient_checkpointing: computes"),
        (["--model.trainable", "['*']"], "model.trainable: stands beside sft.prefix_tokens"),
        ([*PREFIX, "--sft.loss_on", "all"], "sft.loss_on: with model.attention prefix tokens"),
    ],
)
def test_what_does_not_go_together(
    more: list[str], says: str, glm: Path, files: dict, tmp_path: Path, call: Any
) -> None:
    words = told(glm, files, tmp_path / "run", *VIRTUAL, *more)
    status, _, err = call("sft", words)
    assert status != 0
    assert says in " ".join(err.split())


def test_a_revision_of_the_base(
    llama: Path, files: dict, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit is the parent in stage.json; one that is not there, and a folder's, are named."""
    repo, commit = tmp_path / "models--someone--model", "d" * 40
    shutil.copytree(llama, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "later").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub, out = Path("someone/model"), tmp_path / "run"
    in_process("sft", told(hub, files, out, "--model.revision", "later"))
    found = record(out / "sft")
    assert found["parents"]["base"] == {"hub": "someone/model", "commit": commit}
    assert found["config"]["model"]["path"] == "someone/model"
    assert weights(out / "sft")
    for base, name, says in (
        (hub, "gone", "'someone/model@gone' is no local folder"),
        (llama, "later", f"model.revision: is for hub ids, and {llama} is a folder"),
    ):
        _, _, err = call("sft", told(base, files, tmp_path / "other", "--model.revision", name))
        assert says in " ".join(err.split())


@pytest.mark.parametrize("how", ["bf16", "8bit"])
def test_trained_prefixes_before_a_base_in_few_bits(
    how: str, glm: Path, files: dict, tmp_path: Path, call: Any
) -> None:
    """As ChatGLM's own recipe has them, under prefix attention; they are saved in fp32."""
    precision = ["--model.precision", "bf16"] if how == "bf16" else []
    more = [*VIRTUAL, *PREFIX, "--model.quantization", how, *precision]
    status, _, err = call("sft", told(glm, files, tmp_path / "run", *more))
    assert status == 0, err
    (saved,) = load_file(tmp_path / "run/sft/adapter/adapter_model.safetensors").values()
    assert saved.dtype == torch.float32
    assert saved.shape == (3, 2 * 2 * 2 * 8)
