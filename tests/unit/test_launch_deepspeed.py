"""A DeepSpeed file of the user's own, and DeepSpeed that is not installed."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from cores.config import PPOSection, SFTSection
from cores.errors import UserError
from cores.runtime import checks
from cores.runtime.checks import check_launch, check_steps

NO_STAGE = re.compile(r"zero\.json does not say the ZeRO stage\. .*or use conf")


@pytest.fixture(autouse=True)
def deepspeed_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read settings only: they need no DeepSpeed."""
    monkeypatch.setattr(checks, "find_spec", lambda name: name)


def test_no_deepspeed(monkeypatch) -> None:
    """Under launchers that let our code start (accelerate's own ends before)."""
    monkeypatch.setattr(checks, "find_spec", {"other": 1}.get)
    with pytest.raises(UserError, match=r"^the launch: DeepSpeed is not installed; run `pip inst"):
        check_launch({"ACCELERATE_USE_DEEPSPEED": "true"}, 0, None)
    check_launch({"ACCELERATE_USE_DEEPSPEED": "false"}, 0, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": {"type": "AdamW"}}, "DeepSpeed's own optimizer is not used"),
        ({"scheduler": {"type": "WarmupLR"}}, "DeepSpeed's own scheduler is not used"),
        ({"bf16": {"enabled": True}}, "DeepSpeed's bf16 is not used"),
        ({"bf16": True}, "DeepSpeed's bf16 is not used"),
        ({"gradient_accumulation_steps": 8}, "gradient_accumulation_steps 8 is not used"),
        ({"gradient_accumulation_steps": "x"}, "gradient_accumulation_steps x is not used"),
        ({"train_batch_size": 8}, "train_batch_size 8 is not used: batch_size .* Remove it"),
        ({"train_micro_batch_size_per_gpu": 64}, "train_micro_batch_size_per_gpu 64 is not used"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping 0.5 .*: sft.max_grad_norm is 1.0. Remove"),
    ],
)
def test_deepspeed_file(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    """The same for a DeepSpeed file of its own; "auto", and what agrees, is taken."""
    path = tmp_path / "zero.json"
    env = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    good = {
        "gradient_accumulation_steps": 1, "gradient_clipping": 1.0, "bf16": {"enabled": "auto"},
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
        "zero_optimization": {"stage": 2},
    }  # fmt: skip
    path.write_text(json.dumps(good), encoding="utf-8")
    check_launch(env, 0, None)
    check_steps(SFTSection(), "sft", env)
    path.write_text(json.dumps({**good, **settings}), encoding="utf-8")

    def check() -> None:
        check_launch(env, 0, None)
        check_steps(SFTSection(), "sft", env)

    with pytest.raises(UserError, match=said):
        check()


@pytest.mark.parametrize("stage", ["auto", "3", 4, -1, 2.0, True, None])
def test_deepspeed_file_without_a_stage(stage: Any, tmp_path: Path) -> None:
    """A stage that is none, and below files without any."""
    said = refusal(tmp_path / "zero.json", {"zero_optimization": {"stage": stage}})
    assert NO_STAGE.search(said)


@pytest.mark.parametrize(
    "content", [{}, [1], 3, None, {"zero_optimization": {}}, {"zero_optimization": [3]}]
)
def test_deepspeed_file_of_another_shape(content: Any, tmp_path: Path) -> None:
    """Not an object, or one without the section."""
    assert NO_STAGE.search(refusal(tmp_path / "zero.json", content))


def refusal(path: Path, content: Any) -> str:
    """What is said of a DeepSpeed file with this content."""
    path.write_text(json.dumps(content), encoding="utf-8")
    env = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    with pytest.raises(UserError) as caught:
        check_launch(env, 0, None)
    return str(caught.value)


def test_the_lock_of_a_compilation_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is refused by its name; one that somebody may still hold is waited for."""
    pytest.importorskip("deepspeed")
    from cores.sharding import sharding

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    sharding("fp32", cpu=True)
    os.utime(lock, (0, 0))
    with pytest.raises(UserError, match=rf"^{lock}: a compilation of .* Delete that file"):
        sharding("fp32", cpu=True)


def test_other_optimizers() -> None:
    """Under DeepSpeed and FSDP2 AdamW alone."""
    env, lion = {"ACCELERATE_USE_DEEPSPEED": "true"}, SFTSection(optimizer="lion")
    with pytest.raises(UserError, match=r"^sft\.optimizer: lion does not go with DeepSpeed"):
        check_steps(lion, "sft", env)
    check_steps(SFTSection(), "sft", env)
    check_steps(PPOSection(), "ppo", env)
    check_steps(lion, "sft", {})
    with pytest.raises(UserError, match=r"^sft\.optimizer: lion does not go with FSDP2"):
        check_steps(lion, "sft", {"ACCELERATE_USE_FSDP": "true"})
