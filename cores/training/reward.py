"""Stage 2: pairwise training by TRL's RewardTrainer, held-out accuracy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from cores.config import Config
from cores.draws import seeded
from cores.models import ScalarModel, check_saving, load_scalar
from cores.models.adapters import add_lora
from cores.run import StageRun
from cores.runtime.launch import Launch
from cores.training.calibration import score_rows
from cores.training.lasting import Lasting, common_arguments, one_gpu, train

Pair = dict[str, Any]


def init_head(model: Any, seed: int) -> None:
    """Head weights N(0, 1/sqrt(d + 1)), d the hidden size (Ziegler et al. 2019)."""
    weight = model.score.weight
    with seeded(seed, "head"):
        nn.init.normal_(weight, std=(weight.shape[1] + 1) ** -0.5)


def reward_model(config: Config, sft: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Stage 1's model in `sft` with a new head of one label, and with adapters if there are any.
    UserError if it, which adapters may be merged into, could not be saved."""
    model: Any = load_scalar(sft, config.model, tokenizer, num_labels=1)
    init_head(model, config.seed)
    check_saving(model, tokenizer)
    if not config.reward.lora.rank:
        return model
    with seeded(config.seed, "reward's adapters"):
        return add_lora(model, config.reward.lora, TaskType.SEQ_CLS, "reward.lora")


class PairTrainer(Lasting, RewardTrainer):
    """TRL's trainer, with each pair of an optimizer step counting alike.

    The library averages the means of micro-batches: in an epoch's last, incomplete batch a pair of
    a small micro-batch would weigh more, and the result would hang on `microbatch_size`.
    """

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step; notes how many pairs all ranks have in them."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = torch.tensor(sum(pairs_in(sample) for sample in samples), device=device)
        self.step_pairs = self.accelerator.gather(own).sum().item()
        return samples, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """A micro-batch's mean, times its share of the step's pairs over an even share."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        even = self.step_pairs / self.current_gradient_accumulation_steps
        return loss * (pairs_in(inputs) * self.accelerator.num_processes / even)


def pairs_in(batch: Any) -> int:
    """Pairs of a micro-batch: chosen rows are followed by as many rejected ones."""
    return len(batch["input_ids"]) // 2


def train_reward(
    config: Config,
    model: PreTrainedModel,
    pairs: list[Pair],
    tokenizer: PreTrainedTokenizerBase,
    run: StageRun,
) -> Any:
    """`model`, trained on `pairs`: see `lasting.train`."""
    rows = [{k: pair[k] for k in ("chosen_ids", "rejected_ids", "margin")} for pair in pairs]

    def trainer() -> PairTrainer:
        arguments = RewardConfig(
            **common_arguments(config, config.reward, "reward", len(pairs), run),
            center_rewards_coefficient=config.reward.center_coef or None,
            max_length=None,
        )
        made = PairTrainer(
            run,
            ["loss", "accuracy", "margin", "learning_rate"],
            model=model,
            args=one_gpu(arguments),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        for weight in model.parameters():
            if weight.requires_grad:  # TRL puts adapters and head on a quantised base in bf16
                weight.data = weight.data.float()
        return made

    return train(model, run, trainer)


def accuracy(
    model: ScalarModel, pairs: list[Pair], pad_id: int, batch_size: int, launch: Launch
) -> dict[str, Any]:
    """Share of pairs whose chosen side scores higher, and that of "the longer reply wins".

    Over all pairs at once, not a mean of batch means; a tie counts half.
    """
    if not pairs:
        return {"pairs": 0, "accuracy": None, "accuracy_longer": None}
    rows = [pair[side] for pair in pairs for side in ("chosen_ids", "rejected_ids")]
    scores = score_rows(model, rows, pad_id, batch_size, launch)
    lengths = [float(len(row)) for row in rows]
    return {
        "pairs": len(pairs),
        "accuracy": wins(scores[::2], scores[1::2]),
        "accuracy_longer": wins(lengths[::2], lengths[1::2]),
    }


def wins(chosen: list[float], rejected: list[float]) -> float:
    """Share of places where `chosen` is larger, ties counting half."""
    points = [
        1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)
    ]
    return sum(points) / len(points)
