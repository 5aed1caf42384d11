"""A reward model that the policy never saw, as a reward function with weight 0.

The folder is named by the environment variable JUDGE. It reads prompt and reply as text, with the
end-of-sequence token behind it.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cores.models import ScalarModel, load_scalar, load_tokenizer
from cores.runtime.launch import Launch
from cores.training.calibration import score_rows

BATCH = 64


@cache
def _judge() -> tuple[ScalarModel, Any, Launch]:
    folder = Path(os.environ["JUDGE"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = load_scalar(folder)
    model.requires_grad_(False)
    launch = Launch(0, 1, device, "fp32")
    return ScalarModel(model).to(device), load_tokenizer(folder), launch


def judge(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """Its calibrated score of each reply."""
    model, tokenizer, launch = _judge()
    texts = [prompt + reply for prompt, reply in zip(prompts, responses, strict=True)]
    read = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = [[*one, tokenizer.eos_token_id] for one in read]
    return score_rows(model, ids, BATCH, launch)
