"""Stage 1: cross-entropy on the trained tokens, by Hugging Face's Trainer on our ids and labels.

Trainer rather than TRL's SFTTrainer: the latter computes the loss beside the model's head, where
the excluded ids would come back into the softmax.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from cores.config import Config
from cores.data import StageData, StreamedData, TextStream, right_pad
from cores.data.collate import pack
from cores.data.encode import IGNORED
from cores.draws import seeded
from cores.errors import ANEW, UserError
from cores.models import add_lora
from cores.models.actor import plain_model
from cores.models.adapters import language_task
from cores.models.attention import LENGTHS, attend_both_ways, check_packing, check_prefix
from cores.models.bases import load_base
from cores.models.images import ImageProcessor, Images
from cores.models.loading import check_length
from cores.models.tuning import add_prefix, freeze_others
from cores.models.vocabulary import pad_of
from cores.rollout.pictures import BLANK, opened
from cores.run import StageRun
from cores.runtime.launch import Launch
from cores.training.lasting import Lasting, train
from cores.training.losses import PART, WeightedLosses, loss_weights, row_sums

Row = dict[str, Any]
"""A demonstration, as `sft_data` tells."""


def check_positions(config: Config, base: PretrainedConfig) -> None:
    """UserError if the longest row, virtual tokens before it, has more tokens than positions."""
    virtual = config.sft.prefix_tokens
    keys = "sft.max_length + sft.prefix_tokens" if virtual else "sft.max_length"
    check_length(base, config.sft.max_length + virtual, keys)


def collate(
    rows: list[Row], pad_id: int, start_id: int | None = None, images: Images = None
) -> dict[str, Tensor]:
    """input_ids, labels and attention_mask, (B, L) int64 each, right-padded; of a base that reads
    images what `ImageProcessor.inputs` says, and a row more where no row has any.

    Packed rows have position_ids in place of the mask: transformers tells rows apart by positions
    that begin again, where no mask says otherwise. Padding is at position 0, each token by itself.
    Rows of prefix attention have prompt_length (B,) beside it.

    A row's first label is ignored. Nothing predicts it, but the Trainer counts it among the tokens
    that it divides by for models whose class name has no known loss (GPT2LMHeadModel).

    Of rows for an encoder and a decoder labels are (B, T), all of them predicted, and
    decoder_input_ids (B, T) what predicts them: `start_id`, then the labels before.
    """
    if images is not None and not any(row["images"] for row in rows):
        rows = [*rows, blank_row(images)]
    ids, mask = right_pad([row["input_ids"] for row in rows], pad_id)
    labels, _ = right_pad([row["labels"] for row in rows], IGNORED)
    found = {"input_ids": ids, "labels": labels, "attention_mask": mask.long()}
    for name in (PART, LENGTHS):
        if name in rows[0]:
            found[name] = torch.tensor([row.get(name, 0) for row in rows])  # a blank row has none
    if "encoder_ids" in rows[0]:
        before, _ = right_pad([[start_id or 0, *row["labels"][:-1]] for row in rows], pad_id)
        return found | {"decoder_input_ids": before}
    labels[:, 0] = IGNORED
    if "position_ids" in rows[0]:
        positions, _ = right_pad([row["position_ids"] for row in rows], 0)
        return {"input_ids": ids, "position_ids": positions, "labels": labels}
    return found if images is None else found | images.inputs(ids, opened(rows, images))


def blank_row(images: ImageProcessor) -> dict[str, Any]:
    """A black image without any text: all weights then have a gradient, though it is 0."""
    count = images.count
    return {"input_ids": [images.id] * count, "labels": [IGNORED] * count, "images": [BLANK]}


def sft_model(config: Config, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The base, with a row for every id of `tokenizer`; with adapters, trained prefixes or frozen
    weights if there are any, and with prefix attention where that is asked for."""
    seed = config.seed
    fresh = seed if config.model.from_config else None
    model: Any = load_base(config.model.path, tokenizer, frozen=config.model, fresh=fresh)
    if config.model.attention == "prefix":
        attend_both_ways(model)
    if config.model.trainable:
        freeze_others(model, config.model.trainable)
    if config.sft.prefix_tokens:
        with seeded(seed, "sft's prefix"):
            model = add_prefix(model, config.sft.prefix_tokens)
    if config.sft.lora.rank:
        with seeded(seed, "sft's adapters"):
            model = add_lora(model, config.sft.lora, language_task(model.config), "sft.lora")
    # Weights that are held in bf16 compute under autocast alone.
    held = config.model.quantization == "bf16"
    with torch.autocast(model.device.type, torch.bfloat16, enabled=held):
        if config.model.attention == "prefix":
            check_prefix(model, config.sft.max_length)
        if config.sft.packing:
            check_packing(model)
    return model


def train_sft(
    model: Any, rows: list[Row] | TextStream, run: StageRun, images: Images = None
) -> Any:
    """`model`, trained: see `lasting.train`."""
    dataset, count = _dataset(rows, run)
    shifted, weights = decoder_start(model) is None, loss_weights(run.config)
    make: Any = Lasting
    if weights or not shifted:
        make = partial(WeightedLosses, weights=weights or [1.0], shifted=shifted)
    return train(
        model,
        run,
        make,
        rows=count,
        names=["loss", "grad_norm", "learning_rate"],
        unused=images is not None,  # towers have layers behind those whose features are read
        train_dataset=dataset,
        data_collator=collator(model, images),
    )


def collator(model: Any, images: Images) -> Callable[[list[Row]], dict[str, Tensor]]:
    """`collate` for rows that `model` reads."""
    pad_id, start_id = pad_of(plain_model(model)), decoder_start(model)
    return partial(collate, pad_id=pad_id, start_id=start_id, images=images)


def decoder_start(model: Any) -> int | None:
    """The id that an encoder-decoder begins a reply behind; None for others."""
    config = plain_model(model).config
    return int(config.decoder_start_token_id) if config.is_encoder_decoder else None


def _dataset(rows: list[Row] | TextStream, run: StageRun) -> tuple[Any, int]:
    """What the trainer reads, packed if asked for, and its number of rows: 0 for a stream."""
    if isinstance(rows, TextStream):
        return rows, 0
    if run.config.sft.packing:
        width, count = run.config.sft.max_length, len(rows)
        rows = pack(rows, width)
        filled = sum(len(row["input_ids"]) for row in rows) / (width * len(rows))
        line = f"packed: {count} rows in {len(rows)} of {width} tokens, {filled:.0%} filled"
        run.launch.say(line)
    return Dataset.from_list(rows), len(rows)


def train_and_judge(
    model: Any, data: StageData | StreamedData, run: StageRun, images: Images = None
) -> tuple[Any, dict[str, float | None]]:
    """The trained model, and its loss on held-out rows before and after, which is printed."""
    config, launch = run.config, run.launch
    size = config.sft.microbatch_size
    before = held_out_loss(model.to(launch.device), data.test, size, launch, images)
    _check_loss(before, "before training: the base's weights, or its config, are at fault")
    if run.resumed is None:
        run.metrics.held_out(0, {"loss": before})
    trained = train_sft(model, data.train, run, images)
    after = held_out_loss(trained, data.test, size, launch, images)
    _check_loss(after, f"behind training: lower sft.learning_rate, {ANEW}")
    if config.data.sft.streaming:  # the counts are known only now
        launch.say("\n".join(data.report.lines()))
    if before is not None and after is not None:
        launch.say(f"held-out loss {before:.4f} -> {after:.4f} nats a token")
        run.metrics.held_out(run.saved, {"loss": after})
    return trained, {"test_loss_before": before, "test_loss": after}


def _check_loss(loss: float | None, why: str) -> None:
    if loss is not None and not math.isfinite(loss):
        raise UserError(f"sft: the held-out loss is {loss} {why}.")


def held_out_loss(
    model: Any, rows: list[Row], batch_size: int, launch: Launch, images: Images = None
) -> float | None:
    """Mean nats a trained token over `rows`, by all ranks together; None without rows."""
    if not rows:
        return None
    own = rows[launch.rank :: launch.world]
    losses = row_losses(model, own, batch_size, launch, images)
    everyone = gather_object(losses) if launch.world > 1 else losses
    return sum(nats for nats, _ in everyone) / max(1, sum(tokens for _, tokens in everyone))


@torch.no_grad()
def row_losses(
    model: Any, rows: list[Row], batch_size: int, launch: Launch, images: Images = None
) -> list[tuple[float, int]]:
    """Nats of each row's trained tokens together, and how many these are; of this rank alone."""
    model.eval()
    found: list[tuple[float, int]] = []
    shifted, batch_of = decoder_start(model) is None, collator(model, images)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = {name: tensor.to(launch.device) for name, tensor in batch_of(part).items()}
        labels = batch.pop("labels")
        with launch.autocast():
            logits = model(**batch).logits
        nats = row_sums(logits, labels, shifted)
        counts = (labels != IGNORED).sum(dim=1)  # a first one, which nothing predicts, is ignored
        # A black image's row may stand behind them.
        found += list(zip(nats.tolist(), counts.tolist(), strict=True))[: len(part)]
    return found
