"""What stages 1 and 2 tell their trainers."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from cores.config import ModelSection, RewardSection, SFTSection
from cores.runtime.launch import Launch
from cores.sharding import Whole

STATUS_LINES = 20
"""Status lines a stage, about."""


def common_arguments(
    section: SFTSection | RewardSection,
    model: ModelSection,
    launch: Launch,
    held: Whole,
    seed: int,
    rows: int,
    folder: Path,
    key: str,
) -> dict[str, Any]:
    """Arguments of `TrainingArguments`; batches are counted over all processes and accumulated.

    UserError naming `key` if batch_size does not divide over processes and micro-batches.
    """
    micro, passes = launch.split(section, key)
    steps = section.max_steps or math.ceil(section.epochs * math.ceil(rows / section.batch_size))
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": passes,
        "num_train_epochs": section.epochs,
        "max_steps": section.max_steps or -1,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(section.warmup_ratio * steps),
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "optim": "adamw_torch",
        "gradient_checkpointing": model.gradient_checkpointing,
        "seed": seed,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": max(1, steps // STATUS_LINES),
        "save_strategy": "no",
        "report_to": "none",
        "log_level": "error",
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        # of a stream each process reads its own rows: batches sent to it must be of one width
        "accelerator_config": {"dispatch_batches": False},
        **held.trainer_arguments(section.max_grad_norm, micro, passes),
    }


def one_gpu(arguments: TrainingArguments) -> None:
    """Switch nn.DataParallel off: a process takes one GPU, however many it sees.

    The trainers would spread each batch over all of them, and so make it as many times larger.
    Hiding the others by CUDA_VISIBLE_DEVICES fails once a library has counted them (bitsandbytes
    does when it is imported).
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
