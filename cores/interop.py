"""Scores of stage 2 for other trainers.

from cores.interop import trl_reward
GRPOTrainer(..., reward_funcs=[trl_reward("runs/demo/reward")])   # and RLOOTrainer
"""

import json
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import GenerationConfig

from cores.config.parse import parse_config, renamed
from cores.config.schema import Config
from cores.data import readable, right_pad
from cores.data.encode import encode_rows
from cores.data.roles import Segment
from cores.data.template import Template, control_tokens, leading_ids
from cores.errors import UserError
from cores.files import read_json
from cores.models import ScalarModel, load_scalar, load_tokenizer
from cores.models.loading import load_config, max_length
from cores.rewards.texts import fitted

SAMPLE = 200
"""Characters of a reply that an error shows at most."""


def trl_reward(
    folder: str | Path, policy: str | Path | None = None, batch_size: int = 32
) -> "TRLReward":
    """A reward function for TRL: the scores that stage 3 gives with the reward model in `folder`.

    `folder`: what stage 2 wrote, `<output_dir>/reward`. `policy`: folder or hub id of the model
    that TRL trains, where its tokenizer is not the reward model's; replies are then read as text.
    UserError if the folder is no reward model of stage 2's.
    """
    return TRLReward(Path(folder).expanduser(), policy, batch_size)


class TRLReward:
    """Called by TRL 1.16's GRPOTrainer and RLOOTrainer with a batch of B replies.

    A prompt of messages is rendered by the template that the reward model was trained under; a text
    is what the policy reads, and is taken as it is. Behind it come the ids that the policy sampled,
    its end token among them: TRL's texts lack it, and it is where the score is read. Without ids
    every reply counts as ended.
    """

    def __init__(self, folder: Path, policy: str | Path | None, batch_size: int) -> None:
        record = read_json(folder / "stage.json", "Give <output_dir>/reward of a finished stage 2.")
        if record.get("stage") != "reward":
            raise UserError(
                f"{folder}: is of the stage {record.get('stage')!r}, and only stage 2's folder, "
                "<output_dir>/reward, gives scores."
            )
        model = load_config(folder)
        if model.is_encoder_decoder:
            raise UserError(
                f"{folder}: is an encoder-decoder, which TRL's GRPO and RLOO do not train beside; "
                "score with it in stage 3."
            )
        self.folder, self.batch_size = folder, batch_size
        self.__name__ = f"{folder.absolute().parent.name}/{folder.name}"  # in TRL's metrics
        self.config = config_of(record)
        self.tokenizer = load_tokenizer(folder)
        self.policy = load_tokenizer(policy) if policy is not None else None
        self.ends = ends_of(policy, self.policy)
        self.template = Template(self.config.template, self.tokenizer)
        self.controls = control_tokens(self.tokenizer)
        self.positions = max_length(model)
        leads = self.config.template.kind != "chat" and self.config.template.bos
        self.leading = leading_ids(self.tokenizer) if leads else []

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[list[int]] | None = None,
        **_: Any,
    ) -> list[float]:
        """B scores of B prompts and completions, texts or lists of messages, and the policy's ids
        of each reply. UserError for what the reward model cannot read."""
        ids = completion_ids if completion_ids is not None else [None] * len(prompts)
        both = zip(prompts, completions, ids, strict=True)
        return self.scores([self.row(prompt, _reply(said), own) for prompt, said, own in both])

    def row(self, prompt: Any, reply: str, ids: list[int] | None = None) -> list[int]:
        """The ids of a prompt with its reply, as a row of stage 2 would have them."""
        own = self.tokenizer
        if ids is None or self.policy is not None:
            text = self.controls.sub(" ", reply) if self.controls else reply
            if ids is None or (ids and ids[-1] in self.ends):  # it ended
                suffix = self.config.template.assistant.suffix
                text = text.removesuffix(suffix) + suffix + self.template.eos
            said = Segment("assistant", text, True)
            return fitted(self._encoded([*self._prompt(prompt), said]), self.positions, own)
        read = readable(own, ids, skip_special_tokens=True)
        if read.strip() != reply.rstrip("\ufffd").strip():
            raise UserError(
                f"{self.folder}: its tokenizer reads the policy's ids as {read[:SAMPLE]!r}, where "
                f"the policy wrote {reply[:SAMPLE]!r}. Name the policy, and replies are read as "
                'text: trl_reward(folder, policy="FOLDER OR HUB ID").'
            )
        return fitted([*self._encoded(self._prompt(prompt)), *ids], self.positions, own)

    @torch.no_grad()
    def scores(self, rows: Sequence[list[int]]) -> list[float]:
        """The score of each row of ids, less `reward_mean`."""
        pad_id: Any = self.tokenizer.pad_token_id
        device, found = next(self.model.parameters()).device, []
        for start in range(0, len(rows), self.batch_size):
            ids, mask = right_pad(list(rows[start : start + self.batch_size]), pad_id)
            found += self.model.scores(ids.to(device), mask.to(device)).tolist()
        return found

    @cached_property
    def model(self) -> ScalarModel:
        """In fp32, on the trainer's device: loaded at the first call, when there is one."""
        return ScalarModel(load_scalar(self.folder)).eval().to(PartialState().device)

    def _prompt(self, prompt: Any) -> list[Segment]:
        if isinstance(prompt, str):
            return [Segment("prompt", prompt, False)]
        turns = [{"role": turn["role"], "content": _text(turn["content"])} for turn in prompt]
        if not turns or turns[-1]["role"] == "assistant":
            raise UserError(
                f"trl_reward: the prompt {str(prompt)[:SAMPLE]} ends with no question, and a reply "
                "is scored behind one. Give prompts whose last message is the user's."
            )
        return self.template.segments(turns, f"the prompt {str(turns[-1:])[:SAMPLE]}")

    def _encoded(self, segments: list[Segment]) -> list[int]:
        (row,) = encode_rows([segments], self.tokenizer, self.leading)
        return row.ids


def ends_of(policy: str | Path | None, tokenizer: Any) -> set[int]:
    """The ids at which a policy ends a reply: its tokenizer's, and those of its
    generation_config.json, of which there may be several."""
    if policy is None:
        return set()
    try:
        named = GenerationConfig.from_pretrained(policy).eos_token_id
    except OSError as error:  # it has none, or a damaged one
        if (file := Path(policy) / "generation_config.json").is_file():
            raise UserError(f"{file} cannot be read: {error}. Make the folder anew.") from None
        named = None
    told = named if isinstance(named, list) else [named]
    return {end for end in (*told, tokenizer.eos_token_id) if end is not None}


def _reply(completion: Any) -> str:
    """The text of a completion, which is a text or one message."""
    if isinstance(completion, str):
        return completion
    if len(completion) != 1 or completion[0].get("tool_calls"):
        raise UserError(
            f"trl_reward: a completion has {len(completion)} messages or calls tools, and stage 2 "
            "scores one reply to a prompt. Train without tools, or score such conversations by a "
            "function of your own."
        )
    return _text(completion[0]["content"])


def _text(content: Any) -> str:
    if not isinstance(content, str):
        raise UserError(
            f"trl_reward: a message's content is {str(content)[:SAMPLE]}, and only texts are "
            "scored. Give its text."
        )
    return content


def config_of(record: dict[str, Any]) -> Config:
    """The configuration that a stage ran with."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        json.dump(renamed(record["config"]), file)  # JSON is YAML
        file.flush()
        return parse_config(["--config", file.name], "trl_reward", "")
