"""Models and trainers of the workloads: weights are random and made on the device; nothing is
read."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from cores.config import Config, LoraSection, ModelSection
from cores.models.adapters import ADAPTER, SCALAR_HEAD, add_lora, quantize
from cores.models.layers import fuse_layers
from cores.models.loading import exclude_from
from cores.models.vocabulary import rounded
from cores.ppo import PPOTrainer, build_roles
from cores.runtime.launch import Launch
from cores.runtime.parents import Parent
from cores.training.ppo import build_trainer
from scripts.bench.workloads import Workload, shape, tokenizer_of


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
        adapted = add_lora(model, section, "SEQ_CLS", "reward.lora")
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
        made = as_loaded(random_policy(workload, device, made_in(frozen)), frozen)
        exclude_from(made, tokenizer)
        return made

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


def trainer_of(workload: Workload, config: Config, launch: Launch) -> PPOTrainer:
    """The product's trainer, roles and rollout engine on random weights."""
    tokenizer = tokenizer_of(workload)
    with random_parents(workload, launch.device) as parents:
        roles = build_roles(config, tokenizer, parents, launch)
    return build_trainer(config, roles, tokenizer, launch)
