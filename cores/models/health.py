"""Whether a model's weights are all there, of its own shapes, and numbers."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cores.errors import UserError

SHOWN = 3
"""Names that an error gives before it counts."""
CLASSIFIER = "SequenceClassification"
STALE = re.compile(
    r"(^|\.)(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$|(^|\.)position_ids$"
)
"""Buffers that old checkpoints hold and that today's classes compute."""
OLD_HEAD = re.compile(r"^(lm_head|embed_out)\.")


@torch.no_grad()
def nonfinite(model: nn.Module) -> list[str]:
    """Names of the parameters with NaN or infinite values; of shards (ZeRO-3) this rank's part."""
    names = []
    for name, parameter in model.named_parameters():
        values = getattr(parameter, "ds_tensor", parameter)
        if values.is_floating_point() and values.numel() and not values.is_meta:
            low, high = torch.aminmax(values)  # NaN is the extreme of whatever it is among
            if not (math.isfinite(low) and math.isfinite(high)):
                names.append(name)
    return names


def check_finite(path: Any, model: nn.Module) -> None:
    """UserError if weights that were just read from `path` are no numbers."""
    bad = nonfinite(model)
    mean = getattr(model.config, "reward_mean", 0.0)
    if not (isinstance(mean, (int, float)) and math.isfinite(mean)):
        bad.append("reward_mean (config.json)")
    if bad:
        raise UserError(
            f"{path}: NaN or infinite values in {_some(bad)}. The model was bad before this run: "
            "give another checkpoint, or train this one again with a lower learning rate."
        )


def check_tensors(path: Any, kind: type, info: dict[str, Any], trained_as: list[str]) -> None:
    """UserError unless the checkpoint `path` has every tensor of the class `kind`, and no other.

    `info` is transformers' loading info. `trained_as`: config.json's architectures. A classifier
    that starts from a causal model takes a new head for the old one.
    """
    new_head = CLASSIFIER in kind.__name__ and CLASSIFIER not in "".join(trained_as)
    missing = {n for n in info["missing_keys"] if not (new_head and n.startswith("score."))}
    surplus = {n for n in info["unexpected_keys"] if not STALE.search(n)}
    if new_head:
        surplus = {n for n in surplus if not OLD_HEAD.search(n)}
    shapes = [f"{n} ({list(a)}, not {list(b)})" for n, a, b in sorted(info["mismatched_keys"])]
    parts = [f"without {_some(missing)}"] if missing else []
    parts += [f"with {_some(surplus)}, of which it has no use"] if surplus else []
    parts += [f"with {_some(shapes)}"] if shapes else []
    if not parts:
        return
    remedy = "Give the config.json that belongs to the weights, or download the model again."
    if wrapped := _prefix(missing, surplus):
        remedy = (
            f"Every name begins with `{wrapped}`: it was saved from a wrapped model "
            "(torch.compile, DDP). Take the prefix from the names, or save the inner model."
        )
    raise UserError(
        f"{path}: its weights do not fit the {kind.__name__} of its config.json: "
        f"{' and '.join(parts)}. {remedy}"
    )


def _some(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def _prefix(missing: set[str], surplus: set[str]) -> str:
    """What stands before every name of the checkpoint, if that is all that is wrong."""
    for name in sorted(missing):
        found = {other.removesuffix(name) for other in surplus if other.endswith("." + name)}
        for prefix in found:
            if all(other.startswith(prefix) for other in surplus):
                return prefix
    return ""
