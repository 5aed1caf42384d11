"""Rewards from Python functions: `file.py:function` in `ppo.rewards`.

Shapes: B rows of a rollout, S sources.
"""

import hashlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable
from copy import deepcopy
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cores.config import PPOSection
from cores.data import readable
from cores.errors import UserError
from cores.rollout import Rollout
from cores.rollout.stops import stop_ids

MODEL = "model"
"""The source that is stage 2's reward model."""
LARGEST = torch.finfo(torch.float32).max
SHOWN = 60
"""Characters of a value, prompt or reply in an error."""

RewardFunction = Callable[[list[str], list[str], list[dict[str, Any]]], Any]
"""function(prompts, responses, rows): a number for each response."""


def load_functions(rewards: dict[str, float]) -> dict[str, RewardFunction]:
    """The functions named in `ppo.rewards`, by source, in its order; each file is run once.

    Paths are relative to the working directory. Raises UserError for a file or function that is
    not there, cannot be called, or whose import fails.
    """
    modules: dict[Path, ModuleType] = {}
    functions = {}
    for source in rewards:
        if source == MODEL:
            continue
        path, _, name = source.rpartition(":")
        file = Path(path).expanduser().resolve()
        if not file.is_file():
            raise UserError(
                f"ppo.rewards: {source!r}: the file {path!r} does not exist (looked in "
                f"{Path.cwd()}); correct the path."
            )
        if file not in modules:
            modules[file] = _import(file, source)
        function = getattr(modules[file], name, None)
        if not callable(function):
            what = "is no function" if hasattr(modules[file], name) else "does not exist"
            raise UserError(
                f"ppo.rewards: {source!r}: {name!r} {what} in {path!r}; define it as "
                f"{name}(prompts, responses, rows), or correct the name."
            )
        functions[source] = function
    return functions


def function_files(rewards: dict[str, float]) -> dict[str, str]:
    """The sha256 of each file that functions of `ppo.rewards` come from, by its path."""
    paths = {source.rpartition(":")[0] for source in rewards if source != MODEL}
    return {p: hashlib.sha256(Path(p).expanduser().read_bytes()).hexdigest() for p in sorted(paths)}


class RewardFunctions:
    """Calls the functions of `ppo.rewards` on the replies of a rollout."""

    def __init__(
        self,
        config: PPOSection,
        tokenizer: PreTrainedTokenizerBase,
        functions: dict[str, RewardFunction],
    ) -> None:
        self.tokenizer = tokenizer
        self.functions = functions
        self.stop_ids = stop_ids(config, tokenizer)

    def __call__(self, rollout: Rollout, rows: list[dict[str, Any]]) -> Tensor:
        """Scores (B, S) float32 of the B replies, one column a function, in their order.

        rows: those of `prompt_data` that the replies belong to, in the rollout's order. Every
        function is called once, with lists of length B: the prompts as rendered, the replies as
        text, and the rows as read from the file. Raises UserError if a function fails or returns
        anything but B finite numbers.
        """
        if len(rows) != rollout.ids.shape[0]:
            raise ValueError(f"{len(rows)} rows for {rollout.ids.shape[0]} replies")
        prompts = [row["prompt"] for row in rows]
        replies = self.texts(rollout)
        scores = torch.empty(len(rows), len(self.functions))
        for i, (source, function) in enumerate(self.functions.items()):
            # Copies, so that what one function does to its arguments no other sees.
            originals = [deepcopy(row["row"]) for row in rows]
            try:
                returned = function(list(prompts), list(replies), originals)
            except (Exception, SystemExit) as error:
                raise UserError(f"ppo.rewards: {source} failed {_cause(error, source)}") from error
            scores[:, i] = torch.tensor(_checked(returned, source, prompts, replies))
        return scores.to(rollout.ids.device)

    def texts(self, rollout: Rollout) -> list[str]:
        """The B replies, without the token that stopped them and without special tokens.

        A stop string stays: the token that completes it may hold more than its end.
        """
        replies = []
        for i, ended in enumerate(rollout.ended.tolist()):
            ids = rollout.response_ids[i][rollout.response_mask[i]].tolist()
            if ended and ids[-1] in self.stop_ids:
                ids.pop()
            replies.append(readable(self.tokenizer, ids, skip_special_tokens=True))
        return replies


def weighted_sum(parts: Tensor, weights: list[float]) -> Tensor:
    """Scores (B,) of parts (B, S): the sum over sources of weight times score."""
    if parts.dim() != 2 or parts.shape[1] != len(weights):
        raise ValueError(f"parts has shape {tuple(parts.shape)}, expected (B, {len(weights)})")
    return (parts * parts.new_tensor(weights)).sum(dim=1)


def _import(file: Path, source: str) -> ModuleType:
    name = str(file)  # of two files with one name each is a module of its own
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a file has a loader by its suffix, .py"
    assert spec.loader is not None, "see above"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # its neighbours, as for a script
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"ppo.rewards: {source!r} cannot be imported {_cause(error, source)}"
        ) from error
    return module


def _cause(error: BaseException, source: str) -> str:
    """`at file:line: what`, the line being the last that ran in the file of `source`."""
    path = source.rpartition(":")[0]
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return f"at {error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    own = str(Path(path).expanduser().resolve())
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == own]
    return f"at {path}:{lines[-1]}: {what}" if lines else f"({path}): {what}"


def _checked(returned: Any, source: str, prompts: list[str], replies: list[str]) -> list[float]:
    """`returned` as one float a reply, or UserError."""
    values = returned.tolist() if hasattr(returned, "tolist") else returned  # arrays, tensors
    if not isinstance(values, list | tuple):
        raise UserError(
            f"ppo.rewards: {source} returned {_short(returned)}; it must return a list with a "
            "number for each response."
        )
    if len(values) != len(replies):
        raise UserError(
            f"ppo.rewards: {source} returned {len(values)} values for {len(replies)} responses; it "
            "must return one for each, in their order."
        )
    numbers: list[float] = []
    for value, prompt, reply in zip(values, prompts, replies, strict=True):
        number = _number(value)
        if number is None:
            raise UserError(
                f"ppo.rewards: {source} returned {_short(value)} for row {len(numbers)}, the "
                f"response {_short(reply)} to the prompt {_short(prompt)}; it must return finite "
                "numbers."
            )
        numbers.append(number)
    return numbers


def _number(value: Any) -> float | None:
    """`value` as a float, None if it is no number that float32 can hold."""
    if getattr(value, "ndim", None) == 0:  # numpy's and torch's scalars
        value = value.item()
    number: Any = value if isinstance(value, Real) else math.nan
    return float(number) if -LARGEST <= number <= LARGEST else None  # NaN is not


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
