"""The fixed workloads of the benchmarks: model shapes and sizes of a step.

Replies have a fixed length because
the end-of-sequence id is one beyond the stand-in tokenizer, which stage 3 excludes from every
distribution with the pad id, in the same operation: neither engine does anything more for it.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    PretrainedConfig,
)

from cores.config import Config, parse_config
from cores.errors import UserError
from cores.models.folders import DROPOUTS
from scripts.bench.shapes import SHAPES


@dataclass(frozen=True)
class Workload:
    """One step of PPO: what is computed, whatever computes it."""

    name: str
    policy: str
    """Shape of actor and reference, a key of SHAPES."""
    scalar: str
    """Shape of critic and reward model."""
    batch: int
    """Replies a rollout."""
    prompt: int
    """Tokens of every prompt."""
    response: int
    """New tokens of every reply; with geometric lengths at most."""
    epochs: int
    minibatch: int
    """Replies an optimizer step."""
    micro: int
    """Replies a forward pass; memory and time, not results."""
    lora: int = 0
    """Rank of adapters on every linear layer, over a frozen bf16 base. 0: all weights train."""
    precision: str = "bf16"
    quantization: str | None = None
    """How the bases under adapters are held. None: bf16 in bf16, whole in fp32."""
    mean_length: float | None = None
    """Mean of geometric reply lengths, were there no cap. None: no reply stops."""

    @property
    def steps(self) -> int:
        """Optimizer steps an update."""
        return self.epochs * (self.batch // self.minibatch)

    @property
    def expected_length(self) -> float:
        """Mean reply length: sum of the chances to be alive, (1 - p)^t for t < response."""
        if self.mean_length is None:
            return self.response
        p = 1 / self.mean_length
        return (1 - (1 - p) ** self.response) / p


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "gpt2", "gpt2", 128, 64, 128, epochs=4, minibatch=32, micro=32),
        Workload("W2", "opt-1.3b", "opt-350m", 64, 256, 256, epochs=1, minibatch=16, micro=4),
        Workload("W3", "llama-7b", "llama-7b", 16, 512, 256, 1, minibatch=4, micro=4, lora=16),
        Workload("W4", "tiny", "tiny", 64, 16, 32, 4, minibatch=16, micro=16, precision="fp32"),
        Workload(
            "W5", "qwen2.5-0.5b", "qwen2.5-0.5b", 256, 104, 512, 1, 64, micro=16, mean_length=277.0
        ),
        Workload(
            "W6", "smollm2-135m", "smollm2-135m", 128, 32, 48, 2, 32, micro=32, mean_length=24.0
        ),
        Workload("W7", "qwen2.5-1.5b", "qwen2.5-0.5b", 64, 128, 256, 1, minibatch=32, micro=8),
        Workload("W8", "llama-3b", "llama-3b", 32, 256, 256, 1, minibatch=8, micro=4, lora=16),
    )
}


class Ids:
    """What stage 3 reads of a tokenizer: pad is its last id; eos is beyond it, or with `stops` in
    it."""

    def __init__(self, vocabulary: int, stops: bool) -> None:
        self.pad_token_id = vocabulary - 2
        self.eos_token_id = vocabulary - 1
        self.size = vocabulary if stops else vocabulary - 1

    def __len__(self) -> int:
        """Ids that replies may hold, and pad."""
        return self.size


def variant(workload: Workload, **changes: Any) -> Workload:
    """`workload` with those of `changes` that are not None; UserError if they do not fit."""
    changed = replace(workload, **{k: v for k, v in changes.items() if v is not None})
    if changed.batch < changed.minibatch:
        changed = replace(changed, minibatch=changed.batch)
    changed = replace(changed, micro=min(changed.micro, changed.minibatch))
    if changed.batch % changed.minibatch:
        raise UserError(
            f"--batch: {changed.batch} replies do not divide into minibatches of "
            f"{changed.minibatch}; choose a multiple of it."
        )
    if changed.mean_length is not None and changed.mean_length <= 1:
        raise UserError(f"--lengths: a mean of {changed.mean_length} tokens; choose more than 1.")
    return changed


def shape(name: str, tokens: int = 0) -> PretrainedConfig:
    """The shape's configuration without dropout, its positions enough for rows of `tokens`."""
    config = deepcopy(SHAPES[name])
    for key, value in config.to_dict().items():
        if key.endswith(DROPOUTS) and isinstance(value, float):
            setattr(config, key, 0.0)
    config.max_position_embeddings = max(config.max_position_embeddings, tokens)
    ids = Ids(config.vocab_size, stops=False)
    config.pad_token_id, config.eos_token_id = ids.pad_token_id, ids.eos_token_id
    config.bos_token_id = ids.eos_token_id
    return config


OWN = {
    "ppo.batch_size": "--batch",
    "ppo.minibatch_size": "--minibatch",
    "ppo.microbatch_size": "--micro",
    "ppo.epochs": "--epochs",
    "ppo.max_new_tokens": "--response",
    "rollout.engine": "--engine",
    "model.quantization": "--quantization",
}
"""The benchmarks' options for keys that a workload sets."""


def settings(workload: Workload, engine: str, options: Sequence[str] = ()) -> Config:
    """Stage 3's configuration of the workload, all else at its default; `options` are more words of
    a stage's command line. UserError as there."""
    w = workload
    words: dict[str, Any] = {
        "model.precision": w.precision,
        "ppo.batch_size": w.batch,
        "ppo.minibatch_size": w.minibatch,
        "ppo.microbatch_size": w.micro,
        "ppo.epochs": w.epochs,
        "ppo.max_prompt_length": w.prompt,
        "ppo.max_new_tokens": w.response,
        "ppo.lora.rank": w.lora,
    }
    if w.lora and (w.quantization or w.precision == "bf16"):
        words["model.quantization"] = w.quantization or "bf16"
    words["rollout.engine"] = engine
    for option in options:
        key = option.removeprefix("--").partition("=")[0]
        if key in words:
            own = OWN.get(key)
            instead = f"give {own} in its place" if own else "it is part of the workload"
            raise UserError(f"--{key} would be measured as what it is not: {instead}.")
    given = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    return parse_config([*given, *options], "scripts/bench", "")


def tokenizer_of(workload: Workload) -> Any:
    """The stand-in tokenizer."""
    return Ids(SHAPES[workload.policy].vocab_size, stops=workload.mean_length is not None)


def prompts_of(workload: Workload, count: int, seed: int) -> list[list[int]]:
    """`count` prompts of random ids."""
    generator = torch.Generator().manual_seed(seed)
    size = (count, workload.prompt)
    top = SHAPES[workload.policy].vocab_size - 2
    return torch.randint(0, top, size, generator=generator).tolist()
