"""Stage 1 on bases that read images, through the command line: it learns, goes on, is loaded by
stock transformers, and refuses what it cannot do."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import in_process, record
from _resume import apart, checkpoint, until
from _tiny import write_jsonl
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from cores.errors import UserError
from scripts.recipes import bases_images

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 60)}
ROLES = """--template.kind roles --template.user.prefix Guest: --template.assistant.prefix Desk:
--sft.learning_rate 0.01 --sft.warmup 0 --sft.max_steps 4 --sft.batch_size 4
--sft.microbatch_size 2 --data.test_fraction 0""".split()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, rows of three forms, and the bases."""
    root = tmp_path_factory.mktemp("images")
    (root / "seen").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 24), colour).save(root / "seen" / f"{name}.jpg")
    rows: list[dict[str, Any]] = [
        {"image": name, "caption": f"The door is {name}."} for name in COLOURS
    ]
    write_jsonl(root / "captions.jsonl", rows * 2)
    turns = [{"from": "human", "value": "<image> 门是什么颜色？"}, {"from": "gpt", "value": "红色"}]
    texts = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    asked = [{"image": name, "conversations": turns} for name in COLOURS]
    write_jsonl(root / "asked.jsonl", [*asked, texts, texts, texts])
    for kind in ("llava", "blip2", "idefics"):
        getattr(bases_images, kind)(root / kind)
    return root


def words(home: Path, kind: str, out: str, rows: str = "captions") -> list[str]:
    """Arguments of a short run."""
    return [
        *ROLES, "--model.path", str(home / kind), "--output_dir", str(home / out),
        "--data.sft.path", str(home / f"{rows}.jsonl"), "--data.sft.image_folder", "seen",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["llava", "blip2", "idefics"])
def test_it_learns_and_is_loaded(home: Path, kind: str) -> None:
    """From rows with and without images; the loss on held-out rows falls."""
    held = ["--data.sft.test_path", str(home / "asked.jsonl")]
    in_process("sft", [*words(home, kind, kind + "-run", "asked"), *held])
    folder = home / f"{kind}-run" / "sft"
    metrics = record(folder)["metrics"]
    assert metrics["test_loss"] < metrics["test_loss_before"] - 0.2
    assert AutoModelForImageTextToText.from_pretrained(folder).config.model_type == kind.replace(
        "blip2", "blip-2"
    )
    processor: Any = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.convert_tokens_to_ids("<image>") is not None
    assert processor.image_processor is not None


TRAINED = {
    "llava": ["model.multi_modal_projector.*"],
    "blip2": ["language_projection.*"],
    "idefics": ["model.perceiver_resampler.*", "model.gated_cross_attn_layers.*"],
}


@pytest.mark.parametrize("kind", TRAINED)
def test_the_bridge_alone_is_trained(home: Path, kind: str) -> None:
    """What is between tower and language model changes, and nothing else, as in the originals."""
    more = ["--model.trainable", json.dumps(TRAINED[kind])]
    in_process("sft", [*words(home, kind, kind + "-part", "asked"), *more])
    folders = (home / kind, home / f"{kind}-part" / "sft")
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in folders
    )
    changed = {n for n in before if n in after and not torch.equal(before[n], after[n])}
    changed -= {"lm_head.weight", "model.embed_tokens.weight"} if kind == "idefics" else set()
    assert changed
    assert all(any(fnmatch(name, p) for p in TRAINED[kind]) for name in changed)


def test_a_run_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its checkpoint to the same numbers, bit for bit."""
    more = ["--checkpoint.every_steps", "2"]
    whole, parts = words(home, "llava", "whole"), words(home, "llava", "parts")
    until(monkeypatch, "sft", [*whole, *more], 4)
    until(monkeypatch, "sft", [*parts, *more], 2)
    until(monkeypatch, "sft", [*parts, *more], 4)
    ends = [checkpoint(home / name, "sft", 4) for name in ("whole", "parts")]
    assert not apart(*ends)


def test_an_image_that_breaks_off(home: Path) -> None:
    """Its header is whole, so that it is seen when its batch comes; the row is named."""
    (home / "seen" / "torn.jpg").write_bytes((home / "seen" / "red.jpg").read_bytes()[:-40])
    rows = [{"image": name, "caption": "A door."} for name in ("red", "torn")]
    write_jsonl(home / "torn.jsonl", rows)
    with pytest.raises(UserError, match=r"torn\.jsonl:2: the image .*torn\.jpg cannot be read"):
        in_process("sft", words(home, "llava", "torn", "torn"))


def test_later_stages_of_other_classes(home: Path) -> None:
    """Stages 2 and 3 are there for LLaVA's class: others are refused for what they are."""
    in_process("sft", [*words(home, "blip2", "blip2-later"), "--sft.max_steps", "1"])
    write_jsonl(home / "pairs.jsonl", [{"prompt": "A?", "chosen": "B", "rejected": "C"}] * 4)
    more = ["--data.preference.path", str(home / "pairs.jsonl")]
    arguments = [*words(home, "blip2", "blip2-later"), *more]
    with pytest.raises(UserError, match="reads images, and is trained in stage 1 alone"):
        in_process("reward", arguments)
    more = ["--data.prompts.path", str(home / "pairs.jsonl"), "--ppo.rewards", '{"x.py:f": 1.0}']
    with pytest.raises(UserError, match="reads images, and is trained in stage 1 alone"):
        in_process("ppo", [*arguments, *more, "--ppo.estimator", "reinforce_pp"])
