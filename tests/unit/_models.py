"""Tiny random models, parents on disk and PPO trainers for the tests of models, rollout and ppo.

Two shapes that differ in what matters, in every test: GPT-2 (learned positions, tied head, dropout
0.1) and Llama (rotary positions, own head, grouped keys, attention dropout 0.1); all families of
_families.py where one of them could break the property. The models have four rows more than the
tokenizer has ids. Weights are large, so that distributions are far from uniform and a
wrong position or a leaking pad shows.
"""

import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _documented import documented
from _families import BUILT, FAMILIES, family_config
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from cores.config import AdamSection, Config, LoraSection, PPOSection, RolloutSection
from cores.models import load_policy, load_scalar, save_model
from cores.models.heads import built, class_of
from cores.models.loading import exclude_from
from cores.ppo import PPOTrainer, Roles, Scored, build_roles
from cores.rollout import Rollout
from cores.runtime.launch import Launch
from cores.runtime.parents import Parent
from cores.training.ppo import build_trainer

KINDS = ("gpt2", "llama")
PAD, EOS, WORDS, ROWS = 0, 1, 60, 64
"""Pad and eos ids, ids of the toy tokenizer, rows of the models."""
EXCLUDED = [PAD, 60, 61, 62, 63]
PROMPTS = [[5, 9, 13], [7, 8, 9, 10, 11, 12], [20], [33, 34, 5, 2]]
LAUNCH = Launch(0, 1, torch.device("cpu"), "fp32")
_FOLDERS = tempfile.TemporaryDirectory(prefix="tristage-tests-")


@cache
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """One id a word: <pad> 0, <eos> 1, w2 to w59."""
    vocabulary = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="w2"
    )


def model_config(kind: str, rows: int = ROWS, **changes: Any) -> PretrainedConfig:
    """Two layers, width 32, `rows` rows of vocabulary, weights of 0.25."""
    common: dict[str, Any] = {
        "vocab_size": rows,
        "eos_token_id": EOS,
        "bos_token_id": EOS,
        "pad_token_id": PAD,
        "initializer_range": 0.25,
    }
    if kind.startswith("opt"):
        common["init_std"] = common.pop("initializer_range")
    return family_config(kind, **{**common, **changes})


def causal(kind: str, seed: int = 0, rows: int = ROWS, **changes: Any) -> Any:
    """A random language model, as Hugging Face makes it but with biases that are not 0."""
    torch.manual_seed(seed)
    config = model_config(kind, rows, **changes)
    return biased(class_of(config, scalar=False).from_config(config).eval())


def classifier(kind: str, seed: int = 1, **changes: Any) -> Any:
    """A random one-label classification model, made alike."""
    torch.manual_seed(seed)
    config = model_config(kind, **changes)
    config.num_labels = 1
    return biased(built(class_of(config, scalar=True), config).eval())


@torch.no_grad()
def biased(model: Any) -> Any:
    """`model` with random biases, so that one that is forgotten shows."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.25)
    return model


@cache
def sft_folder(kind: str) -> Path:
    """A saved stage-1 model."""
    folder = Path(_FOLDERS.name) / kind / "sft"
    save_model(causal(kind), toy_tokenizer(), folder)
    return folder


@cache
def reward_folder(kind: str) -> Path:
    """A saved stage-2 model, whose scores have a mean to subtract."""
    folder = Path(_FOLDERS.name) / kind / "reward"
    model = classifier(kind)
    model.config.reward_mean = 0.75
    save_model(model, toy_tokenizer(), folder)
    return folder


def stock_scalar(folder: Path) -> Any:
    """What stock transformers loads from a stage-2 folder, by the lines of docs/models.md where it
    has no class."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in BUILT:
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return documented("classifier")(config).from_pretrained(folder).eval()


def policy_of(kind: str, dropout: bool = False) -> Any:
    """The stage-1 model as the stages load it, excluded ids excluded."""
    model = load_policy(sft_folder(kind), dropout)
    exclude_from(model, toy_tokenizer())
    return model


def scalar_of(kind: str) -> Any:
    """The stage-2 model as the stages load it."""
    return load_scalar(reward_folder(kind))


def parents(kind: str) -> dict[str, Parent]:
    """What `load_parents` gives, without the checks."""
    return {
        "sft": Parent("sft", sft_folder(kind), {}),
        "reward": Parent("reward", reward_folder(kind), {}),
    }


PPO = PPOSection(
    updates=4,
    batch_size=4,
    minibatch_size=4,
    microbatch_size=4,
    epochs=1,
    max_new_tokens=6,
    actor_learning_rate=1e-3,
    critic_learning_rate=2e-3,
    warmup=0.0,
)
LORA = LoraSection(rank=4)


def adam(**settings: float) -> dict[str, AdamSection]:
    """Both roles' optimizer: `make_trainer("gpt2", **adam(eps=1.0))`."""
    both = AdamSection(**settings)
    return {"actor_adam": both, "critic_adam": both}


ROUNDING: dict[str, Any] = adam(eps=1e-3)
"""For steps that are equal but for rounding: Adam divides some gradients that are nothing else."""


def ppo_config(
    checkpointing: bool = False, seed: int = 0, engine: Any = "auto", **ppo: Any
) -> Config:
    """A configuration whose ppo section is `PPO` with changes, and its rollout engine."""
    config = Config(ppo=replace(PPO, **ppo), seed=seed)
    model = replace(config.model, gradient_checkpointing=checkpointing)
    return replace(config, model=model, rollout=RolloutSection(engine=engine))


def make_trainer(kind: str, reward: Any = None, checkpointing: bool = False, **ppo: Any) -> Any:
    """A fresh trainer on the saved parents; `reward` stands in for the reward model."""
    config = ppo_config(checkpointing, **ppo)
    roles = build_roles(config, toy_tokenizer(), parents(kind), LAUNCH)
    if reward is not None:
        roles = replace(roles, reward=reward)
    return build_trainer(config, roles, toy_tokenizer(), LAUNCH)


def fixed_rollout(
    rows: int = 4, seed: int = 0, width: int = 6, prompts: list[list[int]] | None = None
) -> Rollout:
    """Replies of random length and random ids, some ended by eos and some not."""
    generator = torch.Generator().manual_seed(seed)
    prompts = prompts or [PROMPTS[i % len(PROMPTS)] for i in range(rows)]
    left = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), left + width, dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        length = int(torch.randint(1, width + 1, (1,), generator=generator)) if i else width
        ids[i, left - len(prompt) : left] = torch.tensor(prompt)
        ids[i, left : left + length] = torch.randint(2, WORDS, (length,), generator=generator)
        mask[i, left - len(prompt) : left + length] = True
        if length < width:
            ids[i, left + length - 1] = EOS
            ended[i] = True
    response = mask[:, left:]
    return Rollout(ids, mask, response, torch.zeros(response.shape), ended)


def parameters(module: Any) -> dict[str, Tensor]:
    """A copy of a module's parameters."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest absolute difference over tensors of the same names."""
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


@dataclass
class CountReward:
    """A toy reward: how many of the attended tokens are `token`. Nothing in prompts is."""

    token: int

    def __call__(self, ids: Tensor, mask: Tensor | None, *unused: Any) -> Tensor:
        """(B, L) counts up to each token; those at the last are the scores."""
        found = ids == self.token
        return (found if mask is None else found & mask).cumsum(dim=1).float()


__all__ = [
    "BUILT",
    "EOS",
    "EXCLUDED",
    "FAMILIES",
    "KINDS",
    "LAUNCH",
    "LORA",
    "PAD",
    "PPO",
    "PROMPTS",
    "ROWS",
    "WORDS",
    "CountReward",
    "PPOTrainer",
    "Roles",
    "Scored",
    "adam",
    "causal",
    "classifier",
    "fixed_rollout",
    "largest_difference",
    "make_trainer",
    "model_config",
    "parameters",
    "parents",
    "policy_of",
    "ppo_config",
    "reward_folder",
    "scalar_of",
    "sft_folder",
    "stock_scalar",
    "toy_tokenizer",
]
