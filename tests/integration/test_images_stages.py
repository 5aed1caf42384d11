"""Stages 2 and 3 of LLaVA's class through the command line, and what its policy and critic say of
rows with an image, two or none, held against forward passes of stock LLaVA."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _documented import lines
from _helpers import in_process, record, rows
from _models import LAUNCH
from _resume import goes_on_exactly
from _tiny import write_jsonl
from PIL import Image
from test_images import COLOURS, ROLES
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from cores.draws import uniforms
from cores.models import Actor, ScalarModel, load_policy, load_scalar, load_tokenizer
from cores.models.images import ImageProcessor
from cores.models.loading import exclude_from, load_config
from cores.models.rows import Policy, Rows, Value
from cores.rollout.engine import Rollout, Sampling
from cores.rollout.hf import HFEngine
from cores.rollout.pictures import flat, pictures
from cores.training.calibration import score_rows
from scripts.recipes import bases_images

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
SHORT = """--reward.batch_size 4 --reward.microbatch_size 2 --reward.learning_rate 1e-2
--reward.max_length 64 --reward.calibration_samples 8 --reward.warmup 0 --reward.epochs 4
--ppo.updates 2 --ppo.batch_size 6 --ppo.minibatch_size 6 --ppo.microbatch_size 2
--ppo.max_new_tokens 6 --ppo.epochs 1 --ppo.max_prompt_length 60 --ppo.warmup 0
--ppo.actor_learning_rate 1e-3""".split()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, rows, a base, and a run whose stages 1 and 2 are finished."""
    root = tmp_path_factory.mktemp("stages")
    (root / "seen").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 24), colour).save(root / "seen" / f"{name}.jpg")
    asked: list[dict[str, Any]] = [{"image": name, "prompt": "What colour?"} for name in COLOURS]
    asked += [{"images": ["red", "blue"], "prompt": "<image> or <image>?"}, {"prompt": "Hello"}]
    told = [{**row, "completion": "Red, I think."} for row in asked]
    pairs = [{**row, "chosen": "Yes!", "rejected": "no"} for row in asked]
    for name, made in (("told", told), ("pairs", pairs), ("asked", asked)):
        write_jsonl(root / f"{name}.jsonl", made * 2)
    bases_images.llava(root / "llava")
    for stage in ("sft", "reward"):
        in_process(stage, words(root, "run"))
    return root


def words(home: Path, out: str) -> list[str]:
    """Arguments of its stages."""
    sources = [("sft", "told"), ("preference", "pairs"), ("prompts", "asked")]
    files = {f"--data.{name}.path": home / f"{rows}.jsonl" for name, rows in sources}
    files |= {f"--data.{name}.image_folder": Path("seen") for name, _ in sources}
    held = ["--data.preference.test_path", str(home / "pairs.jsonl")]
    held += ["--data.prompts.test_path", str(home / "asked.jsonl")]
    given = [word for key, value in files.items() for word in (key, str(value))]
    return [
        *ROLES, "--model.path", str(home / "llava"), "--output_dir", str(home / out),
        *given, *held, *SHORT,
    ]  # fmt: skip


def policy_of(home: Path) -> Any:
    model = load_policy(home / "run" / "sft", dropout=False)
    exclude_from(model, load_tokenizer(home / "run" / "sft"))
    return model


def rollout_of(home: Path, model: Any) -> tuple[Rollout, list[dict[str, Any]]]:
    """Replies to prompts with an image, two and none, and the rows that name them."""
    folder = home / "run" / "sft"
    tokenizer = load_tokenizer(folder)
    images = ImageProcessor(str(folder), load_config(folder), tokenizer)
    shown = [["red"], [], ["blue", "green"], ["green"]]
    read = [[str(home / "seen" / f"{name}.jpg") for name in names] for names in shown]
    told = [{"images": names, "where": "a row"} for names in read]
    texts = [images.token * images.count * len(names) + "What colour?" for names in shown]
    prompts = [[*tokenizer(text).input_ids, n] for n, text in enumerate(texts, start=20)]
    engine = HFEngine(model, Sampling(tokenizer.pad_token_id, [2], 6, 0.7))
    drawn = uniforms(len(prompts), 6, 0, "replies", 0)
    return engine.generate(prompts, drawn, images=pictures(images, told)), told


def rows_of(rollout: Rollout) -> Rows:
    images = flat(rollout.images, rollout.shown)
    return Rows(rollout.ids, rollout.mask, rollout.response_mask.shape[1], images)


def alone(rollout: Rollout) -> Iterator[tuple[int, dict[str, Tensor], int]]:
    """Number, stock inputs without padding and reply length of each row."""
    assert rollout.images is not None
    assert rollout.shown is not None
    for i, mask in enumerate(rollout.mask):
        inputs = {"input_ids": rollout.ids[i][mask][None]}
        if rollout.shown[i].any():
            inputs["pixel_values"] = rollout.images[i][rollout.shown[i]]
        yield i, inputs, int(rollout.response_mask[i].sum())


@torch.no_grad()
def test_log_probs_values_and_scores_are_those_of_stock_llava(home: Path) -> None:
    """Whatever images are beside a row; the engine samples what the policy says; image ids have no
    part in it."""
    model = policy_of(home)
    judge: Any = load_scalar(home / "run" / "reward")
    rollout, _ = rollout_of(home, model)
    read, value = rows_of(rollout), Value(ScalarModel(judge))
    logprobs, _ = Policy(Actor(model, 0.7)).logprobs(read)
    torch.testing.assert_close(
        logprobs[rollout.response_mask], rollout.logprobs[rollout.response_mask], **CLOSE
    )
    values, scores = value.values(read), value.score(read)
    for i, inputs, length in alone(rollout):
        logits = model(**inputs).logits[0, -length - 1 : -1] / 0.7
        chosen = inputs["input_ids"][0, -length:]
        own = logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
        torch.testing.assert_close(logprobs[i, :length], own, **CLOSE)
        assert not (logits[:, model.config.image_token_id] > -1e3).any()
        states = judge.model(**inputs).last_hidden_state
        numbers = judge.score(states)[0, :, 0] - judge.config.reward_mean
        torch.testing.assert_close(values[i, :length], numbers[-length - 1 : -1], **CLOSE)
        torch.testing.assert_close(scores[i], numbers[-1], **CLOSE)
        torch.testing.assert_close(
            judge(**inputs).logits[0, 0], numbers[-1] + judge.config.reward_mean, **CLOSE
        )
    assert rollout.images is not None
    other = replace(rollout, images=rollout.images.flip(-1) + 1.0)
    changed = (Policy(Actor(model, 0.7)).logprobs(rows_of(other))[0] - logprobs).abs().amax(dim=1)
    assert changed[1] == 0
    assert (changed[[0, 2, 3]] > 1e-5).all()
    assert not (rollout.response_ids == model.config.image_token_id).any()


@torch.no_grad()
def test_rows_are_scored_with_their_images(home: Path) -> None:
    """Held-out rows and those of calibration, whatever batches they come in."""
    judge: Any = ScalarModel(load_scalar(home / "run" / "reward"))
    rollout, told = rollout_of(home, policy_of(home))
    folder = home / "run" / "reward"
    images = ImageProcessor(str(folder), load_config(folder), load_tokenizer(folder))
    ids = [rollout.row(i) for i in range(len(told))]
    expected = Value(judge).score(rows_of(rollout)).tolist()
    for size in (1, 3):
        found = score_rows(judge, ids, size, LAUNCH, told, images)
        assert found == pytest.approx(expected, abs=1e-4)
    assert score_rows(judge, ids, 4, LAUNCH) != pytest.approx(expected, abs=1e-3)


def test_the_reward_model_learns_and_is_loaded(home: Path) -> None:
    """It tells held-out sides apart; its folder has the image processor beside it."""
    assert record(home / "run" / "reward")["metrics"]["accuracy"] == 1
    judge: Any = load_scalar(home / "run" / "reward")
    assert judge.config.architectures == ["LlavaForSequenceClassification"]
    assert AutoProcessor.from_pretrained(home / "run" / "reward").image_processor is not None
    code = lines("classifier").replace("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")  # as docs/models.md says
    found: dict[str, Any] = {}
    exec(code, found)
    elsewhere = found["classifier"](judge.config).from_pretrained(home / "run" / "reward")
    for name, tensor in judge.state_dict().items():
        assert torch.equal(elsewhere.state_dict()[name], tensor)


def test_stage_3_goes_on_exactly(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches of two take their rows' images with them; a run that was stopped has the
    tensors and figures of one that was not; towers stay, the projector moves."""
    goes_on_exactly(monkeypatch, home, lambda out: words(home, out))
    found = record(home / "straight" / "ppo")["metrics"]
    assert found["before"]["prompts"] == found["after"]["prompts"] == 10
    assert rows(home / "straight" / "ppo" / "metrics.jsonl")[0]["rollout_logprob_gap"] < 1e-4
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict()
        for folder in (home / "run" / "sft", home / "straight" / "ppo")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("multi_modal_projector" in name for name in changed)
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    assert AutoProcessor.from_pretrained(home / "straight" / "ppo").image_processor is not None


@pytest.mark.parametrize("key", ["ppo.lora.rank", "ppo.ptx_coef"])
def test_what_stage_3_does_not_have(key: str, home: Path, refused: Any) -> None:
    said = refused("ppo", [*words(home, "run"), f"--{key}", "1"], home / "run")
    assert f"reads images, and stages 2 and 3 of such a base go without {key}" in said
