"""Stage 2: a reward model from pairs or from ratings, and what it does on held-out ones.

On our own trainer rather than TRL's RewardTrainer, which knows pairs alone.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cores.config import Config, RewardSection
from cores.data import right_pad
from cores.draws import seeded
from cores.evaluate.held_out import mean, wins
from cores.models import ScalarModel, check_saving, load_scalar
from cores.models.actor import plain_model
from cores.models.adapters import add_lora
from cores.models.heads import LAYERS
from cores.models.images import Images, hold_tower
from cores.models.vocabulary import pad_of
from cores.rl.preferences import binned_loss, pairwise_loss, pointwise_loss
from cores.rollout.pictures import opened
from cores.run import StageRun
from cores.runtime.launch import Launch
from cores.training.calibration import score_rows
from cores.training.lasting import Lasting, train
from cores.training.sft import decoder_start

Row = dict[str, Any]
"""A pair or a rating, as `preference_data` tells."""
Judged = tuple[Tensor, dict[str, Tensor]]
"""Losses (B,), and figures (B,) for the log."""
PAIR = ("chosen_ids", "rejected_ids")


def init_head(model: Any, seed: int) -> None:
    """Weights of each linear layer N(0, 1/sqrt(d + 1)), d its inputs (Ziegler et al. 2019)."""
    with seeded(seed, "head"):
        for layer in model.score.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=(layer.in_features + 1) ** -0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def reward_model(config: Config, start: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The model in `start` with a new head, frozen or with adapters if that is asked for.
    UserError if it, which adapters may be merged into, could not be saved."""
    section = config.reward
    head: dict[str, Any] = {"num_labels": 1}
    if section.kind == "binned":
        head = {"num_labels": section.bins, "reward_scale": 1.0}
    if section.head_layers > 1:
        head[LAYERS] = section.head_layers
    model: Any = hold_tower(load_scalar(start, config.model, tokenizer, **head))
    init_head(model, config.seed)
    check_saving(model, tokenizer)
    if section.freeze_base:
        model.requires_grad_(False)
        model.score.requires_grad_(True)
    if not section.lora.rank:
        return model
    with seeded(config.seed, "reward's adapters"):
        return add_lora(model, section.lora, "SEQ_CLS", "reward.lora")


def of_pairs(logits: Tensor, margins: Tensor, section: RewardSection) -> Judged:
    """Of logits (2B, 1): those of the chosen sides, then those of the rejected ones."""
    chosen, rejected = logits.squeeze(-1).chunk(2)
    losses = pairwise_loss(chosen, rejected, margins, section.center_coef)
    return losses, {"accuracy": (chosen > rejected).float(), "margin": chosen - rejected}


def of_scores(logits: Tensor, ratings: Tensor, section: RewardSection) -> Judged:
    """Of logits (B, 1)."""
    return pointwise_loss(logits.squeeze(-1), ratings), {}


def of_bins(logits: Tensor, ratings: Tensor, section: RewardSection) -> Judged:
    """Of logits (B, K)."""
    hits = logits.argmax(dim=-1) == ratings.long() - 1
    return binned_loss(logits, ratings), {"bin_accuracy": hits.float()}


KINDS = {
    "pairwise": (of_pairs, ["accuracy", "margin"]),
    "pointwise": (of_scores, []),
    "binned": (of_bins, ["bin_accuracy"]),
}
"""Kind of reward model: what judges its logits, and the figures."""


def sides_of(rows: list[Row]) -> tuple[str, ...]:
    """Names of what is scored in each of the rows, which are pairs where there are none."""
    return ("ids",) if rows and "score" in rows[0] else PAIR


def collate(
    rows: list[Row], pad_id: int, start_id: int | None = None, images: Images = None
) -> dict[str, Tensor]:
    """input_ids and attention_mask, (B, L) int64, right-padded; of pairs (2B, L), the chosen sides
    first. targets (B,): the pairs' margins, or the ratings.

    Of an encoder-decoder these are the prompts', and decoder_input_ids and decoder_attention_mask
    (B, T + 1) are `start_id` and the replies'. Of a base that reads images pixel_values
    (N, C, H, W) are those of the rows, where there are any.
    """
    sides = sides_of(rows)
    ids = [row[side] for side in sides for row in rows]
    target = "margin" if sides == PAIR else "score"
    targets = torch.tensor([float(row[target]) for row in rows])
    if start_id is None:
        found = _padded(ids, pad_id) | {"targets": targets}
        seen = [] if images is None else [image for row in opened(rows, images) for image in row]
        if images is not None and seen:
            found["pixel_values"] = images.pixels(seen * len(sides))
        return found
    both = list(zip(ids, [row["prompt_length"] for _ in sides for row in rows], strict=True))
    written = _padded([[start_id, *row[begin:]] for row, begin in both], pad_id)
    found = _padded([row[:begin] for row, begin in both], pad_id) | {"targets": targets}
    return found | {f"decoder_{name}": columns for name, columns in written.items()}


def _padded(rows: list[list[int]], pad_id: int) -> dict[str, Tensor]:
    ids, mask = right_pad(rows, pad_id)
    return {"input_ids": ids, "attention_mask": mask.long()}


class RewardTrainer(Lasting):
    """Each row of an optimizer step counts alike.

    The library averages the means of micro-batches: in an epoch's last, incomplete batch a row of
    a small micro-batch would weigh more, and the result would hang on `microbatch_size`.
    """

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step; notes how many rows all ranks have in them."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = torch.tensor(sum(len(sample["targets"]) for sample in samples), device=device)
        self.step_rows = self.accelerator.gather(own).sum().item()
        return samples, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """A micro-batch's share of the mean over the step's rows, times the number of its
        micro-batches on all ranks, which the trainer divides by."""
        targets = inputs["targets"]
        rows = {k: v for k, v in inputs.items() if k != "targets"}
        logits = model(**rows, use_cache=False).logits
        section: Any = self.section
        losses, figures = KINDS[section.kind][0](logits.float(), targets, section)
        self.add(len(targets), figures)
        passes = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        return losses.sum() * (passes / self.step_rows)


def train_reward(model: Any, rows: list[Row], run: StageRun, images: Images = None) -> Any:
    """`model`, trained on `rows`: see `lasting.train`."""
    pad_id, start_id = pad_of(plain_model(model)), decoder_start(model)
    return train(
        model,
        run,
        RewardTrainer,
        rows=len(rows),
        names=["loss", *KINDS[run.config.reward.kind][1], "learning_rate"],
        train_dataset=rows,
        data_collator=partial(collate, pad_id=pad_id, start_id=start_id, images=images),
    )


def judged(
    model: ScalarModel, rows: list[Row], run: StageRun, images: Images = None
) -> dict[str, Any]:
    """Figures on held-out rows, told to the screen and the trackers."""
    found = figures(model, rows, run.config.reward.microbatch_size, run.launch, images)
    run.metrics.held_out(run.saved, found)
    if "mse" in found:
        related = "-" if found["correlation"] is None else f"{found['correlation']:.3f}"
        run.launch.say(
            f"held-out mean squared error {found['mse']:.4f}, correlation {related} on "
            f"{found['rows']} ratings (their variance: {found['variance']:.4f})"
        )
    elif rows:
        run.launch.say(
            f"held-out accuracy {found['accuracy']:.3f} on {found['pairs']} pairs "
            f"(the longer reply wins: {found['accuracy_longer']:.3f})"
        )
    return found


def figures(
    model: ScalarModel, rows: list[Row], batch_size: int, launch: Launch, images: Images = None
) -> dict[str, Any]:
    """What the model says of pairs or ratings, by all ranks together."""
    sides = sides_of(rows)
    about = [row for row in rows for _ in sides]
    ids = [row[side] for row in rows for side in sides]
    scores = score_rows(model, ids, batch_size, launch, about, images)
    if sides == PAIR:
        return accuracy(scores, [float(len(each)) for each in ids])
    return agreement(scores, [row["score"] for row in rows])


def agreement(scores: list[float], ratings: list[float]) -> dict[str, Any]:
    """Mean squared error and correlation of scores and ratings (None where one of them does not
    vary), and the ratings' variance, which is the error of their mean."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (scores, ratings))
    spread = x.std(correction=0) * y.std(correction=0)
    together = ((x - x.mean()) * (y - y.mean())).mean()
    return {
        "rows": len(x),
        "mse": (x - y).square().mean().item(),
        "correlation": (together / spread).item() if spread > 0 else None,
        "variance": y.var(correction=0).item(),
    }


def accuracy(scores: list[float], lengths: list[float]) -> dict[str, Any]:
    """Share of pairs whose chosen side scores higher, that of "the longer reply wins", and how
    often the model scores the longer reply of a pair higher (None where no lengths differ), of
    the sides of all pairs, the chosen one first.

    Over all pairs at once, not a mean of batch means; a tie counts half.
    """
    if not scores:
        return {"pairs": 0, "accuracy": None, "accuracy_longer": None, "prefers_longer": None}
    both = zip(scores[::2], scores[1::2], lengths[::2], lengths[1::2], strict=True)
    uneven = [(a, b) if x > y else (b, a) for a, b, x, y in both if x != y]
    longer, shorter = ([pair[side] for pair in uneven] for side in (0, 1))
    return {
        "pairs": len(scores) // 2,
        "accuracy": mean(wins(scores[::2], scores[1::2])),
        "accuracy_longer": mean(wins(lengths[::2], lengths[1::2])),
        "prefers_longer": mean(wins(longer, shorter)) if uneven else None,
    }
