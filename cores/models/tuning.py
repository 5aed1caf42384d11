"""Training a part of a model: weights chosen by name, or prefixes put before every layer."""

from fnmatch import fnmatchcase
from typing import Any

from peft import PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from cores.errors import UserError

SHOWN = 6
"""Names that an error gives."""


def freeze_others(model: nn.Module, patterns: list[str]) -> None:
    """Train only the weights whose names fit one of `patterns` (* for any text); UserError for a
    pattern that fits none."""
    weights = dict(model.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in weights):
            some = list(weights)[:: max(1, len(weights) // SHOWN)][:SHOWN]
            raise UserError(
                f"model.trainable: {pattern!r} fits no weight of {type(model).__name__}, which has "
                f"{len(weights)}, such as {', '.join(some)} (tied weights have the first name "
                "alone). Correct it; * stands for any text."
            )
    for name, weight in weights.items():
        weight.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))


def trained_part(model: nn.Module) -> str:
    """A line that says how much of `model` is trained."""
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    some, all_ = (sum(weight.numel() for weight in part) for part in (trained, weights))
    return f"trained: {len(trained)} of {len(weights)} tensors, {some:,} of {all_:,} weights"


def add_prefix(model: PreTrainedModel, tokens: int) -> PeftModel:
    """`model`, frozen, behind `tokens` trained keys and values in every layer, as P-Tuning v2 has
    them (Liu et al. 2021): no network makes them. UserError where the family has no place."""
    config = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens)
    try:
        made: Any = get_peft_model(model, config)
    except (ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"sft.prefix_tokens: {type(model).__name__} has no place for them ({error}). Set it "
            "to 0, or take a model of another family."
        ) from None
    return made  # type: ignore[no-any-return]
