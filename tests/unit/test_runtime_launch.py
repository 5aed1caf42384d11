"""What a process does first."""

import os

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _telemetry

from cores.config import Config
from cores.runtime.launch import _one_gpu_a_process, launch, quiet


def test_nothing_is_reported_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library read its environment variable long before `quiet` could set it."""
    sent: list[object] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(_telemetry, "_start_telemetry_thread", lambda: None)
    monkeypatch.setattr(_telemetry._TELEMETRY_QUEUE, "put", sent.append)
    quiet()
    _telemetry.send_telemetry("topic")
    assert sent == []


@pytest.mark.parametrize(
    ("visible", "launcher", "kept"),
    [(None, False, "0"), ("2,3", False, "2"), (None, True, None), ("2,3", True, "2,3")],
)
def test_one_gpu_without_a_launcher(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, launcher: bool, kept: str | None
) -> None:
    """The first of those that the user allows; else HF's trainer would run nn.DataParallel."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment = {}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    if launcher:
        environment["LOCAL_RANK"] = "0"
    monkeypatch.setattr(os, "environ", environment)
    _one_gpu_a_process()
    assert environment.get("CUDA_VISIBLE_DEVICES") == kept


def test_cudnn_attention_is_off() -> None:
    """Its backward pass gives NaN for masked rows of some lengths (pytorch issue 196678)."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    launch(Config())
    assert not torch.backends.cuda.cudnn_sdp_enabled()
