"""What a process does first."""

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _telemetry

from cores.config import Config
from cores.runtime.launch import launch, quiet


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


def test_cudnn_attention_is_off() -> None:
    """Its backward pass gives NaN for masked rows of some lengths (pytorch issue 196678)."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    launch(Config())
    assert not torch.backends.cuda.cudnn_sdp_enabled()
