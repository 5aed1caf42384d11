"""Reward models that do not read the policy's ids: replies go to them as text."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config import Config
from cores.config.ppo import WITH_CRITIC
from cores.data.rendering import rendered
from cores.data.template import Template, control_tokens, leading_ids
from cores.errors import UserError
from cores.models import load_tokenizer
from cores.models.loading import load_config, max_length
from cores.rewards.call import SHORT, reply_texts
from cores.rollout import Rollout
from cores.runtime.parents import Parent

Row = dict[str, Any]


class TextReward:
    """The ids of prompt and reply in the reward model's own tokenizer and template.

    With a chat template of its own the conversation is rendered by that, its end included. Without
    one the text is that of the policy's template, of kind roles or none, and its own
    end-of-sequence token stands where a token ended the reply. Its special tokens are taken out of
    what users and policy wrote, so that no reply can end its own turn.
    """

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, reward: Parent) -> None:
        """For replies of the policy with `tokenizer`. UserError if it cannot read them."""
        name, chat = config.reward.path, reward.record["chat"]
        if config.template.kind == "chat" and not chat:
            raise UserError(
                f"reward.path: the tokenizer of {name} has no chat template, which conversations "
                "of template.kind chat need. Put the one that it was trained with into its folder "
                "(chat_template.jinja), or give another reward model."
            )
        if config.ppo.critic_init == "reward":
            raise UserError(
                f"ppo.critic_init: the critic cannot start from {name} (reward.path), which has "
                "another tokenizer or template than the policy, or fewer positions than its rows. "
                "Set it to zero or null."
            )
        self.config = config
        self.policy = tokenizer
        self.tokenizer = load_tokenizer(reward.folder)
        self.positions = max_length(load_config(reward.folder))
        self.controls = control_tokens(self.tokenizer)
        self.template = None if chat else Template(config.template, self.tokenizer)
        self.leading = [] if chat else leading_ids(self.tokenizer)
        self.cut = 0
        """Rows of the last call that lost the beginning of their prompt, being too long."""

    def __call__(self, rollout: Rollout, rows: Sequence[Row]) -> list[list[int]]:
        """The ids of each of the B replies behind its prompt; rows: as of `prompt_data`, B."""
        replies = reply_texts(rollout, self.policy, self.config.ppo)
        return self.read([self.text(row, *reply) for row, reply in zip(rows, replies, strict=True)])

    def read(self, texts: list[str]) -> list[list[int]]:
        """The ids of whole texts, as `text` gives them."""
        found: Any = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        whole = [self.leading + ids for ids in found]
        rows = [fitted(ids, self.positions, self.tokenizer) for ids in whole]
        self.cut = sum(len(row) < len(ids) for row, ids in zip(rows, whole, strict=True))
        return rows

    def text(self, row: Row, reply: str, stopped: bool) -> str:
        """Prompt and reply as it reads them; UserError if there is no way."""
        turns = [{**turn, "content": self._plain(turn["content"])} for turn in row["turns"]]
        where = f"reward.path: the prompt {SHORT.repr(turns[-1]['content'])}"
        whole = turns[0]["role"] == "text"
        if self.template is not None:
            prompt = row["prompt"]
            if not whole:
                prompt = "".join(part.text for part in self.template.segments(turns, where))
            return prompt + self._plain(reply) + (self.template.eos if stopped else "")
        if whole:
            raise UserError(
                f"{where}: it has no turns, which the chat template of the reward model needs. "
                "Give prompts, or a reward model without a chat template."
            )
        reply = reply.removesuffix(self.config.template.assistant.suffix)
        said = {"role": "assistant", "content": self._plain(reply)}
        return rendered(self.tokenizer, [*turns, said], False, where)

    def _plain(self, text: str) -> str:
        return self.controls.sub(" ", text) if self.controls else text


def fitted(ids: list[int], positions: int | None, tokenizer: Any) -> list[int]:
    """`ids`, or of more than a model's `positions` the end, behind the first if that begins every
    text."""
    if positions is None or len(ids) <= positions:
        return ids
    first = ids[:1] if ids[0] == tokenizer.bos_token_id else []
    return first + ids[len(ids) - positions + len(first) :]


def text_reward(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    parents: dict[str, Parent],
    rows: Sequence[Row],
) -> TextReward | None:
    """How the reward model of `reward.path` reads replies to the prompts `rows`, each of which is
    tried; None where it reads the ids of the policy, whose tokenizer and template it shares."""
    if config.reward.path is None:
        return None
    policy, reward = parents["sft"], parents["reward"]
    alike = reward.record["chat"] == (config.template.kind == "chat")
    room = max_length(load_config(reward.folder))
    fits = room is None or config.ppo.max_prompt_length + config.ppo.max_new_tokens <= room
    if alike and fits and reward.record["tokenizer"] == policy.record["tokenizer"]:
        return None
    texts = TextReward(config, tokenizer, reward)
    for row in rows:
        texts.text(row, "x", True)
    return texts


def notes(config: Config, texts: TextReward | None) -> list[str]:
    """What should be known of a reward model from elsewhere."""
    if texts is None:
        return []
    critic = ", and the critic starts as the policy with a head of zeros"
    return [
        f"note: {config.reward.path} reads replies as text, by a tokenizer or template of its own"
        f"{critic if config.ppo.estimator in WITH_CRITIC else ''}"
    ]
