"""What a process does first."""

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _telemetry

from cores.config import Config
from cores.errors import ElsewhereError, NoRoomError, UserError
from cores.runtime.launch import Launch, launch, quiet


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


@pytest.mark.parametrize(
    ("other", "error"), [(3, ElsewhereError), (1, NoRoomError), (0, NoRoomError)]
)
def test_memory_that_runs_out_here(
    other: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All turn back together, unless a rank ends: that outweighs it. (Of two, rank 1 is here.)"""
    monkeypatch.setattr(Launch, "agree", lambda self, value: [max(value, other)])
    here = Launch(1, 2, torch.device("cpu"), "fp32")
    with pytest.raises(error):
        here.together(_short, memory=True)
    with pytest.raises(torch.OutOfMemoryError):
        here.together(_short)


def test_a_rank_that_ends_says_more_than_one_without_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it tells is above all that the others may."""
    told: list[int] = []

    def agree(self: Launch, value: int) -> list[int]:
        told.append(value)
        return [value]

    monkeypatch.setattr(Launch, "agree", agree)
    for rank in range(2):
        here = Launch(rank, 2, torch.device("cpu"), "fp32")
        for action, error in ((_short, NoRoomError), (_ending, UserError)):
            with pytest.raises(error):
                here.together(action, memory=True)
    assert max(told[::2]) < min(told[1::2])


def _short() -> None:
    raise torch.OutOfMemoryError("none left")


def _ending() -> None:
    raise UserError("wrong")
