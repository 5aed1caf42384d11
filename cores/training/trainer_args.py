"""What stages 1 and 2 tell their trainers."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cores.config import ModelSection, RewardSection, SFTSection
from cores.errors import UserError
from cores.runtime.launch import Launch
from cores.runtime.metrics import Metrics
from cores.runtime.sharding import deepspeed_asked, settings

STATUS_LINES = 20
"""Status lines a stage, about."""


def common_arguments(
    section: SFTSection | RewardSection,
    model: ModelSection,
    launch: Launch,
    seed: int,
    rows: int,
    folder: Path,
    key: str,
) -> dict[str, Any]:
    """Arguments of `TrainingArguments`; batches are counted over all processes and accumulated.

    UserError naming `key` if batch_size does not divide over processes and micro-batches.
    """
    micro, passes = launch.split(section, key)
    sharded: dict[str, Any] = {}
    if deepspeed_asked():
        sharded = {
            "deepspeed": settings(launch.precision, section.max_grad_norm, micro, passes),
            "accelerator_config": {
                "use_configured_state": True,  # or it forgets gloo
                "dispatch_batches": False,
            },
        }
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
        # DeepSpeed's own bf16 mode rounds the weights; its settings ask for autocast instead.
        "bf16": model.precision == "bf16" and not deepspeed_asked(),
        "gradient_checkpointing": model.gradient_checkpointing,
        "seed": seed,
        "use_cpu": launch.device.type == "cpu" and not deepspeed_asked(),
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
        **sharded,
    }


def one_gpu(arguments: TrainingArguments) -> None:
    """Switch nn.DataParallel off: a process takes one GPU, however many it sees.

    The trainers would spread each batch over all of them, and so make it as many times larger.
    Hiding the others by CUDA_VISIBLE_DEVICES fails once a library has counted them (bitsandbytes
    does when it is imported).
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


class StatusLines(TrainerCallback):
    """Hands the trainer's log entries to our metrics: one stream, one display."""

    def __init__(self, metrics: Metrics, stage: str, names: dict[str, str]) -> None:
        self.metrics = metrics
        self.stage = stage
        self.names = names
        """Entry of the trainer's log to the name shown."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called by the trainer every `logging_steps` optimizer steps."""
        if not logs or "loss" not in logs:
            return
        values = {ours: float(logs[theirs]) for theirs, ours in self.names.items()}
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"{self.stage}: the training loss is {values['loss']} at step {state.global_step}. "
                f"Lower {self.stage}.learning_rate, or compute in fp32 (--model.precision fp32)."
            )
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        line = f"{self.stage} {state.global_step}/{state.max_steps}  {shown}"
        self.metrics.log(state.global_step, values, line)
