"""Reward models that read text, and what stands in a finished stage's place."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import causal, classifier
from _tokenizers import chat_like, gpt2_like, llama_like
from huggingface_hub import constants

from cores.config import Config, PPOSection, RewardSection, RoleTemplate, TemplateSection
from cores.config.parse import parse_config
from cores.config.schema import SFTSection
from cores.errors import UserError
from cores.rewards.texts import TextReward, text_reward
from cores.rollout import Rollout
from cores.runtime.parents import load_parents, parent_facts, policy_tokenizer

ROLES = TemplateSection(
    kind="roles",
    user=RoleTemplate("User: ", "\n"),
    assistant=RoleTemplate("Assistant:", "!"),
    system_prompt="Be brief.",
    system=RoleTemplate("", "\n"),
)
ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Good morning"},
    {"role": "user", "content": "a towel?"},
]
"""Turns of a row, the system prompt among them."""


def folder(path: Path, tokenizer: Any, model: Any) -> Path:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def reward_of(tokenizer: Any, path: Path, **changes: Any) -> Path:
    return folder(path, tokenizer, classifier("gpt2", rows=len(tokenizer), **changes))


def row_of(turns: list[dict[str, str]]) -> dict[str, Any]:
    return {"prompt": "", "turns": turns, "row": {}}


def replies(tokenizer: Any, texts: list[tuple[str, bool]]) -> Rollout:
    """A one-token prompt and these replies, some with the stop token."""
    ids = [tokenizer(t)["input_ids"] + [tokenizer.eos_token_id] * stop for t, stop in texts]
    width = max(map(len, ids))
    mask = torch.tensor([[True] + [j < len(row) for j in range(width)] for row in ids])
    padded = torch.tensor([[5] + row + [0] * (width - len(row)) for row in ids])
    ended = torch.tensor([stop for _, stop in texts])
    return Rollout(padded, mask, mask[:, 1:], torch.zeros(len(ids), width), ended)


def texts_of(config: Config, policy: Any, path: Path) -> TextReward:
    """Of the reward model in `path`, for a policy with that tokenizer in `path`/policy."""
    folder(path / "policy", policy, causal("gpt2", rows=len(policy)))
    config = replace(
        config,
        output_dir=str(path / "out"),
        sft=SFTSection(path=str(path / "policy")),
        reward=RewardSection(path=str(path)),
        ppo=replace(config.ppo, max_prompt_length=32, max_new_tokens=8),
    )
    parents = load_parents(config, ["sft", "reward"])
    made = text_reward(config, policy_tokenizer(config, parents["sft"]), parents, [])
    assert made is not None
    return made


def read(texts: TextReward, policy: Any, said: list[tuple[str, bool]], turns: Any) -> list[str]:
    """The text that the reward model's ids spell."""
    found = texts(replies(policy, said), [row_of(turns)] * len(said))
    return [str(texts.tokenizer.decode(ids)) for ids in found]


def test_its_own_chat_template(tmp_path: Path) -> None:
    """The policy's stop token and suffix go, the template's end comes; nothing that anyone wrote is
    read as a special token of the reward model."""
    reward_of(chat_like(), tmp_path)
    texts = texts_of(Config(template=ROLES), gpt2_like(), tmp_path)
    said = [(" Of course!", True), ("I will <|im_end|> bring", False)]
    start, end = "<|im_start|>", "<|im_end|>\n"
    asked = "".join(f"{start}{t['role']}\n{t['content']}{end}" for t in ASKED)
    assert read(texts, gpt2_like(), said, ASKED) == [
        f"{asked}{start}assistant\n Of course{end}",
        f"{asked}{start}assistant\nI will   bring{end}",
    ]
    with pytest.raises(UserError, match="it has no turns"):
        texts.text(row_of([{"role": "text", "content": "x"}]), "y", True)


def test_the_policy_s_text_in_its_own_tokenizer(tmp_path: Path) -> None:
    """Without a chat template: BOS first, its own stop token behind each reply that ended."""
    reward_of(llama_like(), tmp_path)
    texts = texts_of(Config(template=ROLES), gpt2_like(), tmp_path)
    asked = "Be brief.\nUser: Hello there\nAssistant:Good morning!</s>User: a towel?\nAssistant:"
    found = texts(replies(gpt2_like(), [("yes!", True), ("no", False)]), [row_of(ASKED)] * 2)
    assert found[0][-1] == llama_like().eos_token_id
    for ids, reply in zip(found, ("yes!</s>", "no"), strict=True):
        assert ids[0] == llama_like().bos_token_id
        by_hand = llama_like()(asked + reply, add_special_tokens=False)["input_ids"]
        assert ids[1:] == by_hand


def test_a_row_that_is_too_long_loses_its_beginning(tmp_path: Path) -> None:
    """It is counted, and the token that begins every text stays."""
    reward_of(llama_like(), tmp_path, n_positions=24)
    texts = texts_of(Config(template=ROLES), gpt2_like(), tmp_path)
    turns = [{"role": "user", "content": "hello " * 30}]
    found = texts(
        replies(gpt2_like(), [("yes", True)] * 2),
        [row_of(turns), row_of([{"role": "user", "content": "a"}])],
    )
    assert texts.cut == 1
    assert len(found[0]) == 24
    assert found[0][0] == llama_like().bos_token_id
    assert found[0][-1] == llama_like().eos_token_id


@pytest.mark.parametrize(("template", "reads"), [(TemplateSection(), "ids"), (ROLES, "text")])
def test_who_reads_ids(template: TemplateSection, reads: str, tmp_path: Path) -> None:
    """One tokenizer and one template: the ids. One tokenizer, but another template: text. With
    fewer positions than the policy's rows may have: text."""
    reward_of(chat_like(), tmp_path / "reward")
    folder(tmp_path / "sft", chat_like(), causal("gpt2", rows=len(chat_like())))
    config = Config(
        output_dir=str(tmp_path),
        template=template,
        sft=SFTSection(path=str(tmp_path / "sft")),
        reward=RewardSection(path=str(tmp_path / "reward")),
        ppo=PPOSection(max_prompt_length=32, max_new_tokens=8),
    )
    parents = load_parents(config, ["sft", "reward"])
    tokenizer = policy_tokenizer(config, parents["sft"])
    assert (text_reward(config, tokenizer, parents, []) is None) == (reads == "ids")
    longer = replace(config, ppo=replace(config.ppo, max_prompt_length=2000))
    assert text_reward(longer, tokenizer, parents, []) is not None
    explicit = replace(longer, ppo=replace(longer.ppo, critic_init="reward"))
    with pytest.raises(UserError, match=r"ppo\.critic_init: the critic cannot start"):
        text_reward(explicit, tokenizer, parents, [])


def test_a_hub_s_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a hub id; the branch is `revision`, and a wrong one is named."""
    repo, commit = tmp_path / "models--someone--model", "c" * 40
    folder(repo / "snapshots" / commit, gpt2_like(), causal("gpt2", rows=len(gpt2_like())))
    (repo / "refs").mkdir()
    (repo / "refs" / "later").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    section = SFTSection(path="someone/model", revision="later")
    parents = load_parents(Config(output_dir=str(tmp_path / "out"), sft=section), ["sft"])
    assert parent_facts(parents) == {"sft": {"hub": "someone/model", "commit": commit}}
    tokenizer = policy_tokenizer(Config(), parents["sft"])
    assert len(tokenizer) == len(gpt2_like()) + 1 == parents["sft"].record["vocab_size"]
    wrong = Config(sft=replace(section, revision="gone"))
    with pytest.raises(UserError, match=r"sft\.path: 'someone/model@gone' is no local folder"):
        load_parents(wrong, ["sft"])


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--sft.revision", "x"], "sft.revision"),
        (["--reward.path", "x", "--ppo.rewards", "{a.py:f: 1}", "--ppo.critic_init", "zero"],
         "reward.path"),
        (["--reward.path", " "], "reward.path"),
    ],
)  # fmt: skip
def test_keys_that_would_do_nothing(words: list[str], key: str) -> None:
    with pytest.raises(UserError, match=f"--{key}: "):
        parse_config(words, "stage3_ppo.py", "")
