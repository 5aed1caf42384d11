"""Training a part of a model: weights chosen by name, or prefixes put before every layer."""

from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from cores.errors import UserError

SHOWN = 6
"""Names that an error gives."""


def fitting(model: nn.Module, patterns: list[str], key: str) -> set[str]:
    """Names of the weights that fit one of `patterns` (* for any text), the value of `key`;
    UserError for a pattern that fits none."""
    names = [name for name, _ in model.named_parameters()]
    found = {pattern: {n for n in names if fnmatchcase(n, pattern)} for pattern in patterns}
    for pattern in (pattern for pattern, fits in found.items() if not fits):
        some = names[:: max(1, len(names) // SHOWN)][:SHOWN]
        raise UserError(
            f"{key}: {pattern!r} fits no weight of {type(model).__name__}, which has {len(names)}, "
            f"such as {', '.join(some)} (tied weights have the first name alone). Correct it; * "
            "stands for any text."
        )
    return set().union(*found.values())


def freeze_others(model: nn.Module, patterns: list[str]) -> None:
    """Train only the weights that fit one of `patterns`; UserError as `fitting`."""
    trained = fitting(model, patterns, "model.trainable")
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)


def trained_part(model: nn.Module) -> str:
    """A line that says how much of `model` is trained."""
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    some, all_ = (sum(weight.numel() for weight in part) for part in (trained, weights))
    return f"trained: {len(trained)} of {len(weights)} tensors, {some:,} of {all_:,} weights"


def add_prefix(model: PreTrainedModel, tokens: int) -> Any:
    """`model`, frozen, behind `tokens` trained keys and values in every layer, as P-Tuning v2 has
    them (Liu et al. 2021): no network makes them. UserError where the family has no place."""
    from peft import PrefixTuningConfig, get_peft_model

    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    try:
        made: Any = get_peft_model(model, config)
    except (ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"sft.prefix_tokens: {type(model).__name__} has no place for them ({error}). Set it "
            "to 0, or take a model of another family."
        ) from None
    return made  # type: ignore[no-any-return]
