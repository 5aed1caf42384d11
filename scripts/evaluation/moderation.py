"""A language model as a gate: which of the labels that it was taught it would write behind a text.

OpenChatKit's moderation (https://huggingface.co/togethercomputer/GPT-JT-Moderation-6B) is no
classifier: rows "Input: ..", "Output: label" below a header that names the labels. Each label is
scored by the log-probability of its text there, so that no label but these can come out.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax

from cores.config import Config
from cores.data import right_pad
from cores.data.encode import encode_rows
from cores.data.roles import Segment
from cores.data.template import control_tokens
from cores.errors import UserError
from cores.models import load_policy, load_tokenizer
from cores.models.loading import max_length

ASKED = "Input: {text}\nOutput:"
"""A row of the recipe up to its label, which a space parts from it."""
NUMBERED = re.compile(r"^\d+[.)] +(.+?) *$", re.MULTILINE)
REFUSED = ("needs intervention",)
"""OpenChatKit's worst label."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one text."""

    label: str | None
    """The likeliest one; None: the text is longer than the model reads."""
    probabilities: dict[str, float]
    """Of each label among all labels; they add up to 1. Empty without a label."""
    allowed: bool
    """The label is none of those that are refused, and there is one."""


def labels_of(header: str) -> list[str]:
    """The labels that numbered lines of the header name; UserError for fewer than two."""
    labels = NUMBERED.findall(header)
    if len(set(labels)) < 2:
        raise UserError(
            "data.join_opening: names no labels to choose from, one a line as in '1. casual'; give "
            "the configuration that the moderation model was trained with "
            "(configs/recipes/openchatkit_moderation.yaml)."
        )
    return labels


class Gate:
    """A model that judges texts.

    `header` stands before them and names the labels; `between` parts rows of the training text.
    UserError where `refused` names a label that is not there.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        header: str,
        between: str,
        refused: Collection[str] = REFUSED,
        batch_size: int = 8,
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.labels = labels_of(header)
        self.before, self.between = header + between, between
        if unknown := sorted(set(refused) - set(self.labels)):
            raise UserError(
                f"{', '.join(unknown)}: is no label of the model, which knows "
                f"{', '.join(self.labels)}; refuse some of these."
            )
        self.refused, self.batch_size = frozenset(refused), batch_size
        self.controls = control_tokens(tokenizer)

    def judge(self, texts: Sequence[str]) -> list[Verdict]:
        """A verdict on each text, by itself: a line in it cannot end the row and begin another, as
        white space is written as one space, and control tokens are left out."""
        rows = [row for text in texts for row in self._rows(text)]
        encoded = list(encode_rows(rows, self.tokenizer, []))
        longest, count = max_length(self.model.config), len(self.labels)
        found = []
        for start in range(0, len(encoded), count):
            own = encoded[start : start + count]
            if longest is not None and max(len(row.ids) for row in own) > longest:
                found.append(Verdict(None, {}, False))
                continue
            scores = self._scores([(row.ids, row.prompt_length) for row in own])
            shares = dict(zip(self.labels, torch.softmax(scores, 0).tolist(), strict=True))
            label = max(shares, key=shares.__getitem__)
            found.append(Verdict(label, shares, label not in self.refused))
        return found

    def reason(self, text: str) -> str | None:
        """Why the text may not pass; None: it may."""
        (verdict,) = self.judge([text])
        return None if verdict.allowed else verdict.label or "longer than the model reads"

    def _rows(self, text: str) -> list[list[Segment]]:
        """The text with each label, which ends where the next row would begin."""
        text = self.controls.sub(" ", text) if self.controls else text
        prompt = self.before + ASKED.replace("{text}", " ".join(text.split()))
        ends = (f" {label}{self.between}" for label in self.labels)
        return [[Segment("prompt", prompt, False), Segment("assistant", e, True)] for e in ends]

    @torch.no_grad()
    def _scores(self, rows: list[tuple[list[int], int]]) -> torch.Tensor:
        """Log-probability (L,) of the tokens behind the prompt of each row (ids, prompt length)."""
        sums = []
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            ids, mask = right_pad([row for row, _ in part], 0)
            ids, mask = ids.to(self.model.device), mask.to(self.model.device)
            logits = self.model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()
            told = log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            columns = torch.arange(1, ids.shape[1], device=ids.device)
            prompts = torch.tensor([length for _, length in part], device=ids.device)[:, None]
            sums.append((told * (mask[:, 1:] & (columns >= prompts))).sum(-1).cpu())
        return torch.cat(sums)


def load_gate(config: Config, folder: str | Path, refused: Collection[str] = REFUSED) -> Gate:
    """The gate of a model that was trained with this configuration, on the CPU: its header is
    data.join_opening, what parts rows data.join. UserError where it has none."""
    labels_of(config.data.join_opening)
    tokenizer = load_tokenizer(folder)
    model = load_policy(folder, dropout=False, frozen=config.model)
    return Gate(model, tokenizer, config.data.join_opening, config.data.join or "", refused,
                config.sft.microbatch_size)  # fmt: skip
