"""The fixed workloads of the benchmarks: model shapes, sizes of a step, and a trainer of each.

Weights are random and made on the device; nothing is read. Replies have a fixed length because
the end-of-sequence id is one beyond the stand-in tokenizer, which stage 3 excludes from every
distribution with the pad id, in the same operation: neither engine does anything more for it.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import TaskType, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from cores.config import Config, LoraSection, ModelSection, parse_config
from cores.errors import UserError
from cores.models.adapters import ADAPTER, SCALAR_HEAD, add_lora, quantize
from cores.models.folders import DROPOUTS
from cores.models.layers import fuse_layers
from cores.models.vocabulary import rounded
from cores.ppo import PPOTrainer, build_roles
from cores.runtime.launch import Launch
from cores.runtime.parents import Parent
from cores.training.ppo import build_trainer
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


def random_model(
    config: PretrainedConfig, device: torch.device, scalar: bool, dtype: Any = torch.float32
) -> Any:
    """A model of random weights on `device`; with `scalar` a one-label classifier."""
    auto = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    config = deepcopy(config)
    if scalar:
        config.num_labels = 1
    torch.manual_seed(0)  # the reference starts as the actor, the critic as the reward model
    with device:
        return auto.from_config(config, dtype=dtype)


@torch.no_grad()
def stop_geometrically(model: Any, mean_length: float) -> None:
    """Give the last id the same chance, 1 / mean_length, at every token.

    Its logit is set to a constant: other logits' log-sum-exp hardly varies at random weights, so
    that it is measured once, on random rows. In training it drifts as far as the policy does.
    """
    size, device = model.config.vocab_size, model.device
    rows = torch.randint(0, size - 2, (16, 32), device=device)
    other = model(rows).logits[:, :, :-2].float().logsumexp(dim=-1).mean().item()
    logit = other - math.log(mean_length - 1)
    head = model.get_output_embeddings()
    head.register_buffer("stop_id", torch.tensor([size - 1], device=device), persistent=False)

    def hook(module: Any, args: Any, logits: Tensor) -> Tensor:
        return logits.index_fill_(-1, module.stop_id, logit)

    head.register_forward_hook(hook)


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


def random_policy(workload: Workload, device: torch.device, dtype: Any = torch.float32) -> Any:
    """Stage 1's model, as transformers makes it."""
    config = shape(workload.policy, workload.prompt + workload.response)
    model = random_model(config, device, scalar=False, dtype=dtype)
    if workload.mean_length is not None:
        stop_geometrically(model, workload.mean_length)
    return model


def made_in(frozen: ModelSection | None) -> torch.dtype:
    """Weights that end in fewer bits begin in 16, so that making them does not decide the peak."""
    return torch.bfloat16 if frozen and frozen.quantization != "none" else torch.float32


def as_loaded(model: Any, frozen: ModelSection | None = None) -> Any:
    """What the product makes of a model: stage 1 rounds the vocabulary up, loaders fuse."""
    rows, device = rounded(model.config.vocab_size), model.device
    model.resize_token_embeddings(rows, mean_resizing=False)
    for place, module in model.named_modules():
        held = isinstance(module, torch.nn.Linear | Conv1D) and place != SCALAR_HEAD
        for name, parameter in module.named_parameters(recurse=False):
            if not (held and name == "weight"):
                parameter.data = parameter.data.float()
    with device:  # layers in few bits are made where the weights are
        return fuse_layers(quantize(model, frozen or ModelSection()))


def adapter_of(workload: Workload, folder: Path) -> None:
    """A random adapter of a reward model on the policy's shape, as stage 2 writes one."""
    meta, section = torch.device("meta"), LoraSection(rank=workload.lora)
    model = random_model(shape(workload.policy), meta, scalar=True)
    with meta:
        adapted = add_lora(model, section, TaskType.SEQ_CLS, "reward.lora")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
    }
    (folder / ADAPTER).mkdir()
    save_file(tensors, folder / ADAPTER / "adapter_model.safetensors")
    adapted.peft_config["default"].save_pretrained(str(folder / ADAPTER))


@contextmanager
def random_parents(workload: Workload, device: torch.device) -> Iterator[dict[str, Parent]]:
    """Stage 1's and stage 2's models for `build_roles`; while open, loading them makes them. With
    adapters, over one shape, stage 2's is an adapter on stage 1's.

    `frozen` is what the loaders take: the section that says how an adapter's base is held.
    """
    tokens = workload.prompt + workload.response

    def policy(
        path: Path, dropout: bool, frozen: ModelSection | None = None, tokenizer: Any = None
    ) -> Any:
        return as_loaded(random_policy(workload, device, made_in(frozen)), frozen)

    def scalar(path: Path, frozen: ModelSection | None = None, tokenizer: Any = None) -> Any:
        made = random_model(shape(workload.scalar, tokens), device, True, made_in(frozen))
        return as_loaded(made, frozen)

    with (
        tempfile.TemporaryDirectory() as root,
        patch.multiple("cores.ppo.roles", load_policy=policy, load_scalar=scalar),
    ):
        sft, reward = Path(root, "sft"), Path(root, "reward")
        shape(workload.policy, tokens).save_pretrained(sft)
        judge = shape(workload.scalar, tokens)
        judge.num_labels = 1
        judge.save_pretrained(reward)
        if workload.lora and workload.policy == workload.scalar:
            adapter_of(workload, reward)
        about: dict[str, Any] = {"files": {}}
        yield {
            "sft": Parent("sft", sft, about),
            "reward": Parent("reward", reward, {"parents": {"sft": about}}),
        }


def tokenizer_of(workload: Workload) -> Any:
    """The stand-in tokenizer."""
    return Ids(SHAPES[workload.policy].vocab_size, stops=workload.mean_length is not None)


def trainer_of(workload: Workload, config: Config, launch: Launch) -> PPOTrainer:
    """The product's trainer, roles and rollout engine on random weights."""
    tokenizer = tokenizer_of(workload)
    with random_parents(workload, launch.device) as parents:
        roles = build_roles(config, tokenizer, parents, launch)
    return build_trainer(config, roles, tokenizer, launch)


def prompts_of(workload: Workload, count: int, seed: int) -> list[list[int]]:
    """`count` prompts of random ids."""
    generator = torch.Generator().manual_seed(seed)
    size = (count, workload.prompt)
    top = SHAPES[workload.policy].vocab_size - 2
    return torch.randint(0, top, size, generator=generator).tolist()
