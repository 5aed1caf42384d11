"""What the launcher asked for, before anything is loaded."""

import os


def deepspeed_asked() -> bool:
    """Whether the launcher chose DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
