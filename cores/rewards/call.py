"""Calling reward functions on a rollout, and what they may return."""

import asyncio
import inspect
import math
import reprlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import islice
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cores.config import PPOSection
from cores.data import readable
from cores.errors import UserError
from cores.rewards.guard import run
from cores.rewards.load import MODEL, RewardFunction
from cores.rollout import Rollout, stop_ids
from cores.runtime.screen import LOG

LARGEST = 1e12
"""Of a score: float32 holds its square, and sums of many."""
SHORT = reprlib.Repr()
"""Values, prompts and replies in an error."""
SHORT.maxstring = SHORT.maxother = 60


@dataclass(frozen=True)
class RewardFunctions:
    """Calls the functions of `ppo.rewards` on the replies of a rollout."""

    config: PPOSection
    tokenizer: PreTrainedTokenizerBase
    functions: dict[str, RewardFunction]

    def __call__(self, rollout: Rollout, rows: list[dict[str, Any]]) -> Tensor:
        """Scores (B, S) float32 of the B replies, one column a function, in their order; NaN where
        it says None.

        rows: those of `prompt_data` that the replies belong to, in the rollout's order. Every
        function is called once, with lists of length B: the prompts as rendered, the replies as
        text, and the rows as read from the file. Raises UserError if a function fails, takes too
        long or returns anything but B finite numbers, and for a row to which all say None.
        """
        if len(rows) != rollout.ids.shape[0]:
            raise ValueError(f"{len(rows)} rows for {rollout.ids.shape[0]} replies")
        texts = reply_texts(rollout, self.tokenizer, self.config)
        return self.ask([text for text, _ in texts], rows).to(rollout.ids.device)

    def ask(self, replies: list[str], rows: list[dict[str, Any]]) -> Tensor:
        """Scores (B, S) of replies that are there as text; else as a call on a rollout."""
        prompts = [row["prompt"] for row in rows]
        scores = torch.empty(len(rows), len(self.functions))
        for i, (source, function) in enumerate(self.functions.items()):
            # Copies, so that what one function does to its arguments no other sees.
            told = list(prompts), list(replies), [deepcopy(row["row"]) for row in rows]
            with LOG.quoting():
                returned = run(
                    partial(_asked, function, *told),
                    f"ppo.rewards: {source} failed",
                    source.rpartition(":")[0],
                    self.config.reward_timeout,
                    f"rewards: {replies!a}",  # of the replies: the same after a run was resumed
                )
            scores[:, i] = torch.tensor(_checked(returned, source, prompts, replies))
        weights = self.config.rewards
        weighed = [i for i, source in enumerate(self.functions) if weights.get(source)]
        silent = scores[:, weighed].isnan().all(dim=1)
        if silent.any() and not weights.get(MODEL):
            raise UserError(
                "ppo.rewards: every source says None for "
                f"{_row(int(silent.nonzero()[0]), prompts, replies)}, which then has no reward; "
                "let one of them return a number."
            )
        return scores


def reply_texts(
    rollout: Rollout, tokenizer: PreTrainedTokenizerBase, config: PPOSection
) -> list[tuple[str, bool]]:
    """`reply_text` of each row."""
    stops = stop_ids(config, tokenizer)
    each = zip(rollout.response_ids, rollout.response_mask, rollout.ended.tolist(), strict=True)
    return [reply_text(ids[mask].tolist(), end, tokenizer, stops) for ids, mask, end in each]


def reply_text(
    ids: list[int], ended: bool, tokenizer: PreTrainedTokenizerBase, stops: list[int]
) -> tuple[str, bool]:
    """A reply without special tokens, and whether a stop id, which is left out, ended it.

    A stop string stays: the token that completes it may hold more than its end.
    """
    stopped = ended and ids[-1] in stops
    kept = ids[:-1] if stopped else ids
    return readable(tokenizer, kept, skip_special_tokens=True), stopped


def _asked(function: RewardFunction, *told: Any) -> Any:
    """What it returns; of anything like a list, a list of pairs: the value, and as a number."""
    returned = function(*told)
    if inspect.isawaitable(returned):
        returned = asyncio.run(asyncio.wait_for(returned, None))  # it may be no coroutine
    if hasattr(returned, "tolist"):  # arrays, tensors, series
        returned = returned.tolist()
    elif isinstance(returned, Iterator):
        returned = list(islice(returned, len(told[0]) + 1))
    if isinstance(returned, Sequence) and not isinstance(returned, str | bytes):
        return [(value, _number(value)) for value in returned]
    return returned


def _checked(returned: Any, source: str, prompts: list[str], replies: list[str]) -> list[float]:
    """The numbers, NaN for None, or UserError."""
    if not isinstance(returned, list):
        raise UserError(
            f"ppo.rewards: {source} returned {_short(returned)}; it must return a list with a "
            "number for each response."
        )
    if len(returned) != len(replies):
        raise UserError(
            f"ppo.rewards: {source} returned {len(returned)} values for {len(replies)} responses; "
            "it must return one for each, in their order."
        )
    for i, (value, number) in enumerate(returned):
        if number is None:
            raise UserError(
                f"ppo.rewards: {source} returned {_short(value)} for {_row(i, prompts, replies)}; "
                f"it must return finite numbers, of at most {LARGEST:g}, or None."
            )
    return [number for _, number in returned]


def _number(value: Any) -> float | None:
    """`value` as a float, NaN for None; None if it is no number to learn from."""
    if value is None:
        return math.nan
    if getattr(value, "ndim", None) == 0:  # numpy's and torch's scalars
        value = value.item()
    try:
        number = float(value) if isinstance(value, Real | Decimal) else math.inf
    except (OverflowError, ValueError):  # larger than any float; a signalling NaN
        return None
    return number if abs(number) <= LARGEST else None  # NaN is not


def _row(i: int, prompts: list[str], replies: list[str]) -> str:
    return f"row {i}, the response {_short(replies[i])} to the prompt {_short(prompts[i])}"


def _short(value: object) -> str:
    try:
        return SHORT.repr(value)
    except Exception:  # an int of more digits than Python writes
        return f"a value of type {type(value).__name__}"
