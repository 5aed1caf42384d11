"""Stage 3 from first to last update: sampler, status lines, sample replies, saving."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cores.config import Config
from cores.data import StageData, readable, sft_data
from cores.errors import UserError
from cores.models import save_model
from cores.models.actor import plain_model
from cores.models.loading import check_length, check_scalar
from cores.ppo.estimate import has_critic
from cores.ppo.evaluate import Evaluation, evaluate, sample_pairs
from cores.ppo.experience import Experience
from cores.ppo.prompts import PromptSampler, share
from cores.ppo.ptx import PtxRows
from cores.ppo.roles import Roles, gathered
from cores.ppo.stats import Stats
from cores.ppo.trainer import PPOTrainer, Row
from cores.rewards.call import RewardFunctions
from cores.rewards.load import RewardFunction
from cores.rollout import build_engine, check_engine, text_matcher
from cores.runtime.launch import Launch, seed_rank
from cores.runtime.metrics import Metrics
from cores.runtime.stage import StageFolder

EVAL_SEED = 1_000_000
"""Added to the seed for evaluation, so that its replies are not those of a training step."""
SAMPLES = 4
"""Sample replies written each time."""


def check_options(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError if stop ids or stop strings cannot stop."""
    text_matcher(config.ppo, tokenizer)
    unknown = [i for i in config.ppo.stop_token_ids if i >= len(tokenizer)]
    if unknown or tokenizer.pad_token_id in config.ppo.stop_token_ids:
        raise UserError(
            f"ppo.stop_token_ids: {unknown or tokenizer.pad_token_id} cannot stop a reply: ids "
            f"must be of the tokenizer (0 to {len(tokenizer) - 1}) and not its pad."
        )


def check_sampling(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    model: PretrainedConfig,
    device: torch.device,
) -> None:
    """UserError if replies of `model` could not be sampled as configured; reads no weights."""
    check_options(config, tokenizer)
    check_engine(config, model, device)


def check_model(config: Config, model: PretrainedConfig) -> None:
    """UserError if stage 1's architecture cannot be a critic where one is needed, or is too short
    for prompts and replies."""
    if has_critic(config.ppo):
        check_scalar(model)
    tokens = config.ppo.max_prompt_length + config.ppo.max_new_tokens
    check_length(model, tokens, "ppo.max_prompt_length + ppo.max_new_tokens")


def needed_stages(config: Config) -> list[str]:
    """Stages that must be finished: without the reward model as a source, stage 1 alone."""
    return ["sft", "reward"] if "model" in config.ppo.rewards else ["sft"]


def ptx_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> StageData | None:
    """Stage 1's data, where its loss is mixed in."""
    if not config.ppo.ptx_coef:
        return None
    data = sft_data(config, tokenizer)
    assert isinstance(data, StageData)  # streams are refused with the configuration
    return data


def build_trainer(
    config: Config,
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    launch: Launch,
    functions: dict[str, RewardFunction] | None = None,
    ptx_rows: Sequence[Row] = (),
) -> PPOTrainer:
    """The trainer with its rollout engine, which samples from the actor's own weights."""
    ppo = config.ppo
    model = plain_model(roles.actor.unwrapped.model)
    engine = build_engine(config, model, tokenizer, ppo.max_new_tokens, launch)
    called = RewardFunctions(ppo, tokenizer, functions) if functions else None
    ptx = None
    if ppo.ptx_coef:
        size, pad_id = ppo.minibatch_size, tokenizer.pad_token_id
        ptx = PtxRows(list(ptx_rows), size, pad_id, config.seed, launch.device)
    return PPOTrainer(ppo, roles, engine, launch, config.seed, called, ptx)


def train(
    config: Config,
    trainer: PPOTrainer,
    data: StageData,
    tokenizer: PreTrainedTokenizerBase,
    folder: StageFolder,
) -> dict[str, Any]:
    """All updates, with an evaluation before and after; returns what stage.json keeps of them."""
    ppo, launch = config.ppo, trainer.launch
    held_out = data.test[: ppo.eval_prompts]
    before = _evaluate(trainer, held_out, config.seed, "before")
    sampler = _sampler(config, len(data.train))
    seed_rank(config.seed, launch.rank)
    with Metrics(folder) as metrics:
        for update in range(1, ppo.updates + 1):
            start = time.monotonic()
            rows = [data.train[i] for i in share(sampler.next(), launch.rank, launch.world)]
            experience, stats = trainer.step([row["input_ids"] for row in rows], rows)
            tokens = int(experience.response_mask.sum())
            stats["tokens_per_second"] = tokens / (time.monotonic() - start)
            metrics.log(update, stats, status_line(update, ppo.updates, stats))
            if launch.is_main and ppo.sample_every and update % ppo.sample_every == 0:
                _write_samples(folder.path, tokenizer, experience, update)
    after = _evaluate(trainer, held_out, config.seed, "after")
    result: dict[str, Any] = {
        "updates": ppo.updates,
        "optimizer_steps": trainer.roles.actor.steps,
        "last": {k: round(v, 6) for k, v in stats.items()},
    }
    if before and after:
        result |= {"before": before.summary(), "after": after.summary()}
        texts = [row["prompt"] for row in held_out]
        pairs = sample_pairs(tokenizer, texts, before, after)
        _write_jsonl(launch, folder.path / "held_out_samples.jsonl", pairs)
    return result


def status_line(update: int, total: int, stats: Stats) -> str:
    """One update on the screen."""
    parts = {  # the critic's warm-up clips nothing, and not every estimator has a critic
        "score": "{score:+.3f}",
        "kl": "{kl:.3f}",
        "entropy": "{entropy:.3f}",
        "clip": "{clip_fraction:.1%}" if "clip_fraction" in stats else "",
        "ev": "{explained_variance:+.2f}" if "explained_variance" in stats else "",
        "length": "{response_length:.1f}",
        "ended": "{ended:.0%}",
    }
    shown = "  ".join(f"{name} {form.format(**stats)}" for name, form in parts.items() if form)
    return f"ppo {update}/{total}  {shown}  {stats['tokens_per_second']:.0f} tok/s"


def save_roles(
    config: Config,
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    launch: Launch,
) -> None:
    """The actor in `folder`, the critic in `folder`/critic in the reward model's form."""
    for role in roles.trained:
        place = folder if role is roles.actor else folder / "critic"
        with gathered(role):  # every rank takes part where weights are sharded
            if launch.is_main:
                save_model(role.unwrapped.model, tokenizer, place, config.ppo.lora.merge)


def _sampler(config: Config, prompts: int) -> PromptSampler:
    ppo = config.ppo
    repeat = ppo.estimator == "coati" and ppo.coati.same_prompts
    return PromptSampler(prompts, ppo.batch_size // ppo.samples_per_prompt, config.seed, repeat)


def _evaluate(trainer: PPOTrainer, rows: list[Row], seed: int, when: str) -> Evaluation | None:
    if len(rows) < 2:  # one has no interval
        return None
    result = evaluate(trainer, [row["input_ids"] for row in rows], seed + EVAL_SEED, rows)
    s = result.summary()
    trainer.launch.say(
        f"{when}: score {s['score']:+.3f} +- {s['score_interval']:.3f}  "
        f"kl {s['kl']:.3f} +- {s['kl_interval']:.3f}  length {s['length']:.1f}  "
        f"({s['prompts']} held-out prompts, 95% intervals)"
    )
    return result


def _write_samples(
    folder: Path, tokenizer: PreTrainedTokenizerBase, experience: Experience, update: int
) -> None:
    width = experience.response_mask.shape[1]
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        for i in range(min(SAMPLES, experience.ids.shape[0])):
            prompt_mask = experience.mask[i, :-width]
            prompt = experience.ids[i, :-width][prompt_mask]
            reply = experience.ids[i, -width:][experience.response_mask[i]]
            row = {
                "update": update,
                "prompt": readable(tokenizer, prompt.tolist()),
                "reply": readable(tokenizer, reply.tolist()),
                "score": round(experience.scores[i].item(), 4),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_jsonl(launch: Launch, path: Path, rows: list[dict[str, Any]]) -> None:
    if launch.is_main:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
