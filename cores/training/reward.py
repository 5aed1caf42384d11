"""Stage 2: pairwise training by TRL's RewardTrainer, held-out accuracy, calibration."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel, TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl import RewardConfig, RewardTrainer

from cores.config import Config
from cores.data import right_pad
from cores.errors import UserError
from cores.models import ScalarModel
from cores.models.actor import plain_model
from cores.models.lora import add_lora
from cores.rollout import RolloutEngine
from cores.runtime.launch import Launch
from cores.runtime.metrics import Metrics
from cores.runtime.sharding import twin_for_whole_weights, whole
from cores.runtime.stage import StageFolder
from cores.training.trainer_args import StatusLines, common_arguments, one_gpu

Pair = dict[str, Any]


def init_head(model: Any) -> None:
    """Head weights N(0, 1/sqrt(d + 1)), d the hidden size (Ziegler et al. 2019)."""
    weight = model.score.weight
    nn.init.normal_(weight, std=(weight.shape[1] + 1) ** -0.5)


class PairTrainer(RewardTrainer):
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
    folder: StageFolder,
    launch: Launch,
) -> Any:
    """Train `model` on `pairs`; return it, as a PeftModel if adapters are asked for."""
    trained: PreTrainedModel | PeftModel = model
    if config.reward.lora.rank:
        trained = add_lora(model, config.reward.lora, TaskType.SEQ_CLS, "reward.lora")
    twin = twin_for_whole_weights(trained)
    arguments = RewardConfig(
        **common_arguments(
            config.reward, config.model, launch, config.seed, len(pairs), folder.path, "reward"
        ),
        center_rewards_coefficient=config.reward.center_coef or None,
        max_length=None,
    )
    one_gpu(arguments)
    names = {
        "loss": "loss",
        "accuracy": "accuracy",
        "margin": "margin",
        "learning_rate": "learning_rate",
    }
    rows = [{k: pair[k] for k in ("chosen_ids", "rejected_ids", "margin")} for pair in pairs]
    with Metrics(folder) as metrics:
        trainer = PairTrainer(
            model=trained,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[StatusLines(metrics, "reward", names)],
        )
        trainer.remove_callback(PrinterCallback)
        for weight in trained.parameters():
            if weight.requires_grad:  # TRL puts adapters and head on a quantised base in bf16
                weight.data = weight.data.float()
        trainer.train()
        result = whole(trained, twin)
        trainer.accelerator.free_memory()
    return result.to(launch.device)


@torch.no_grad()
def score_rows(
    model: ScalarModel, rows: list[list[int]], pad_id: int, batch_size: int, launch: Launch
) -> list[float]:
    """Score of each row of tokens, by all ranks together."""
    model.eval()
    own = []
    mine = range(launch.rank, len(rows), launch.world)
    for start in range(0, len(mine), batch_size):
        indices = mine[start : start + batch_size]
        ids, mask = right_pad([rows[i] for i in indices], pad_id)
        enabled = launch.precision == "bf16"
        with torch.autocast(launch.device.type, dtype=torch.bfloat16, enabled=enabled):
            scores = model.scores(ids.to(launch.device), mask.to(launch.device))
        own += list(zip(indices, scores.tolist(), strict=True))
    everyone = gather_object(own) if launch.world > 1 else own
    return [score for _, score in sorted(everyone)]


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


def calibrate(
    model: ScalarModel,
    engine: RolloutEngine,
    prompts: list[list[int]],
    uniform: Tensor,
    pad_id: int,
    batch_size: int,
    launch: Launch,
) -> dict[str, float]:
    """Make scores of the engine's replies to `prompts` mean 0 and standard deviation 1.

    uniform (N, T): random numbers for the replies to the N prompts of all ranks.
    1/std is folded into the head's weight, and the mean of the folded logits becomes
    `config.reward_mean`: score = stock logit - reward_mean, in this code and in any other.
    Ziegler et al. 2019, section 2. UserError if the scores do not vary, or are not numbers.
    """
    own = []
    mine, numbers = prompts[launch.rank :: launch.world], uniform[launch.rank :: launch.world]
    for start in range(0, len(mine), batch_size):
        part = slice(start, start + batch_size)
        rollout = engine.generate(mine[part], numbers[part])
        own += [rollout.row(i) for i in range(rollout.ids.shape[0])]
    rows = gather_object(own) if launch.world > 1 else own
    raw = torch.tensor(score_rows(model, rows, pad_id, batch_size, launch), dtype=torch.float64)
    mean, std = raw.mean().item(), raw.std(correction=0).item()
    if not std > 0:
        raise UserError(
            f"reward: {len(rows)} replies of the stage-1 model all score {mean:.4g}; such a reward "
            "model teaches nothing. Look at the pairs with --data.inspect 5, and lower "
            "reward.learning_rate if the training loss is not a number."
        )
    scale = 1.0 / std
    stock: Any = plain_model(model.model)
    with torch.no_grad():
        stock.score.weight.mul_(scale)
    stock.config.reward_mean = mean * scale
    model.mean = mean * scale
    launch.say(f"calibrated: mean {mean:.3f}, deviation {std:.3f} -> 0, 1")
    return {"samples": len(rows), "raw_mean": mean, "raw_std": std, "reward_mean": mean * scale}
