"""Stage 1: cross-entropy on the trained tokens, by Hugging Face's Trainer on our ids and labels.

Trainer rather than TRL's SFTTrainer: the latter computes the loss beside the model's head, where
the excluded ids would come back into the softmax.
"""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from cores.config import Config
from cores.data import right_pad
from cores.runtime.launch import Launch
from cores.runtime.metrics import Metrics
from cores.runtime.stage import StageFolder
from cores.training.trainer_args import StatusLines, common_arguments

IGNORED = -100


def collate(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, (B, L) int64 each, right-padded."""
    ids, mask = right_pad([row["input_ids"] for row in rows], pad_id)
    labels, _ = right_pad([row["labels"] for row in rows], IGNORED)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def train_sft(
    config: Config,
    model: PreTrainedModel,
    rows: list[dict[str, list[int]]],
    pad_id: int,
    folder: StageFolder,
    launch: Launch,
) -> None:
    """Train `model` in place."""
    arguments = TrainingArguments(
        **common_arguments(
            config.sft, config.model, launch, config.seed, len(rows), folder.path, "sft"
        ),
        remove_unused_columns=False,
    )
    names = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}
    with Metrics(folder.path, launch, config.logging.tensorboard) as metrics:
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            data_collator=lambda batch: collate(batch, pad_id),
            callbacks=[StatusLines(metrics, "sft", names)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.accelerator.free_memory()


@torch.no_grad()
def held_out_loss(
    model: Any, rows: list[dict[str, list[int]]], pad_id: int, batch_size: int, launch: Launch
) -> float | None:
    """Mean nats a trained token over `rows`; None without rows."""
    if not rows:
        return None
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size], pad_id)
        batch = {name: tensor.to(launch.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        enabled = launch.precision == "bf16"
        with torch.autocast(launch.device.type, dtype=torch.bfloat16, enabled=enabled):
            logits = model(**batch).logits[:, :-1].float()
        total += cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        tokens += int((labels != IGNORED).sum())
    return total / max(1, tokens)
