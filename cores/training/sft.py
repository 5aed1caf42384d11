"""Stage 1: cross-entropy on the trained tokens, by Hugging Face's Trainer on our ids and labels.

Trainer rather than TRL's SFTTrainer: the latter computes the loss beside the model's head, where
the excluded ids would come back into the softmax.
"""

import math
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import TaskType
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from cores.config import Config
from cores.data import StageData, StreamedData, TextStream, right_pad
from cores.data.collate import pack
from cores.draws import seeded
from cores.errors import ANEW, UserError
from cores.models import add_lora
from cores.models.bases import load_base
from cores.run import StageRun
from cores.runtime.launch import Launch
from cores.training.lasting import Lasting, common_arguments, one_gpu, train

IGNORED = -100


def collate(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """input_ids, labels and attention_mask, (B, L) int64 each, right-padded.

    Packed rows have position_ids in place of the mask: transformers tells rows apart by positions
    that begin again, where no mask says otherwise. Padding is at position 0, each token by itself.

    A row's first label is ignored. Nothing predicts it, but the Trainer counts it among the tokens
    that it divides by for models whose class name has no known loss (GPT2LMHeadModel).
    """
    ids, mask = right_pad([row["input_ids"] for row in rows], pad_id)
    labels, _ = right_pad([row["labels"] for row in rows], IGNORED)
    labels[:, 0] = IGNORED
    if "position_ids" in rows[0]:
        positions, _ = right_pad([row["position_ids"] for row in rows], 0)
        return {"input_ids": ids, "position_ids": positions, "labels": labels}
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def sft_model(config: Config, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The base, with a row for every id of `tokenizer`, and with adapters if there are any."""
    fresh = config.seed if config.model.from_config else None
    model = load_base(config.model.path, tokenizer, frozen=config.model, fresh=fresh)
    if not config.sft.lora.rank:
        return model
    with seeded(config.seed, "sft's adapters"):
        return add_lora(model, config.sft.lora, TaskType.CAUSAL_LM, "sft.lora")


def train_sft(
    config: Config,
    model: PreTrainedModel,
    rows: list[dict[str, list[int]]] | TextStream,
    pad_id: int,
    run: StageRun,
) -> Any:
    """`model`, trained: see `lasting.train`."""
    dataset, count = _dataset(config, rows, run.launch)

    def trainer() -> Lasting:
        common = common_arguments(config, config.sft, "sft", count, run)
        return Lasting(
            run,
            ["loss", "grad_norm", "learning_rate"],
            model=model,
            args=one_gpu(TrainingArguments(**common, remove_unused_columns=False)),
            train_dataset=dataset,
            data_collator=lambda batch: collate(batch, pad_id),
        )

    return train(model, run, trainer)


def _dataset(
    config: Config, rows: list[dict[str, list[int]]] | TextStream, launch: Launch
) -> tuple[Any, int]:
    """What the trainer reads, packed if asked for, and its number of rows: 0 for a stream."""
    if isinstance(rows, TextStream):
        return rows, 0
    if config.sft.packing:
        width, count = config.sft.max_length, len(rows)
        rows = pack(rows, width)
        filled = sum(len(row["input_ids"]) for row in rows) / (width * len(rows))
        launch.say(f"packed: {count} rows in {len(rows)} of {width} tokens, {filled:.0%} filled")
    return Dataset.from_list(rows), len(rows)


def train_and_judge(
    config: Config,
    model: Any,
    data: StageData | StreamedData,
    pad_id: int,
    run: StageRun,
) -> tuple[Any, dict[str, float | None]]:
    """The trained model, and its loss on held-out rows before and after, which is printed."""
    size, launch = config.sft.microbatch_size, run.launch
    before = held_out_loss(model.to(launch.device), data.test, pad_id, size, launch)
    _check_loss(before, "before training: the base's weights, or its config, are at fault")
    trained = train_sft(config, model, data.train, pad_id, run)
    after = held_out_loss(trained, data.test, pad_id, size, launch)
    _check_loss(after, f"behind training: lower sft.learning_rate, {ANEW}")
    if config.data.sft.streaming:  # the counts are known only now
        launch.say("\n".join(data.report.lines()))
    if before is not None and after is not None:
        launch.say(f"held-out loss {before:.4f} -> {after:.4f} nats a token")
    return trained, {"test_loss_before": before, "test_loss": after}


def _check_loss(loss: float | None, why: str) -> None:
    if loss is not None and not math.isfinite(loss):
        raise UserError(f"sft: the held-out loss is {loss} {why}.")


@torch.no_grad()
def held_out_loss(
    model: Any, rows: list[dict[str, list[int]]], pad_id: int, batch_size: int, launch: Launch
) -> float | None:
    """Mean nats a trained token over `rows`, by all ranks together; None without rows."""
    if not rows:
        return None
    model.eval()
    total, tokens = 0.0, 0
    own = rows[launch.rank :: launch.world]
    for start in range(0, len(own), batch_size):
        batch = collate(own[start : start + batch_size], pad_id)
        batch = {name: tensor.to(launch.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        with launch.autocast():
            logits = model(**batch).logits[:, :-1].float()
        total += cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        tokens += int((labels != IGNORED).sum())
    if launch.world > 1:
        total, tokens = map(sum, zip(*gather_object([(total, tokens)]), strict=True))
    return total / max(1, tokens)
