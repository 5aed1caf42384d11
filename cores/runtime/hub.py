"""An unreachable hub is found out once, in seconds, rather than retried for half a minute."""

from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub before going on without it."""


def cache_if_unreachable(path: str) -> None:
    """For a model that is no local folder: use the cache alone from here on if the hub is away.

    What is not in the cache then fails at once, and its loader says how to give a local path.
    """
    if constants.HF_HUB_OFFLINE or Path(path).expanduser().is_dir():
        return
    try:
        HfApi().model_info(path, timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):
        return  # the hub answers, or would refuse such a name: the loader says what is wrong
    except (HTTPError, OSError):
        constants.HF_HUB_OFFLINE = True
