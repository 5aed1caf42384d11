"""Scores of the stage-1 model's replies, and the scale that they are given."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cores.config import Config
from cores.data import beside, right_pad
from cores.draws import in_epochs, uniforms
from cores.errors import UserError
from cores.models import ScalarModel, check_saving, load_policy, load_scalar
from cores.models.actor import plain_model, rescale
from cores.models.images import Images
from cores.models.loading import load_config, max_length
from cores.models.rows import Rows, Value
from cores.models.vocabulary import pad_of
from cores.ppo.roles import Roles, Scale, build_roles
from cores.rewards.texts import TextReward
from cores.rollout import RolloutEngine, build_engine
from cores.rollout.pictures import flat, pictures
from cores.run import StageRun
from cores.runtime.launch import Launch
from cores.runtime.parents import Parent

Row = list[int]


def reply_tokens(config: Config) -> int:
    """New tokens of a calibration reply at most."""
    return config.reward.calibration_tokens or config.ppo.max_new_tokens


def prompt_of(row: dict[str, Any]) -> Row:
    """What is asked of the policy, of a row of pairs, ratings or prompts."""
    if "input_ids" in row:
        return row["input_ids"]
    return (row.get("chosen_ids") or row["ids"])[: row["prompt_length"]]


def calibration_asked(
    config: Config, rows: list[dict], *models: PretrainedConfig
) -> list[dict[str, Any]]:
    """The rows whose prompts are asked, drawn at random; UserError if no prompt leaves room for a
    reply in all of the models that read it."""
    tokens = reply_tokens(config)
    positions = min(max_length(model) or math.inf for model in models)
    short = [row for row in rows if len(prompt_of(row)) <= positions - tokens]
    if not short:
        raise UserError(
            f"reward.calibration_tokens: {tokens} new tokens after any "
            f"prompt are more than the {positions} positions of the model. Lower it."
        )
    size = config.reward.calibration_samples
    return [short[i] for i in in_epochs(len(short), 0, size, config.seed, "calibration")]


def policy_engine(
    config: Config, folder: Path, tokenizer: PreTrainedTokenizerBase, launch: Launch
) -> RolloutEngine:
    """An engine over the model in `folder`, sampling as stage 3 will."""
    policy: Any = load_policy(folder, dropout=False, frozen=config.model, tokenizer=tokenizer)
    return build_engine(config, policy.to(launch.device), tokenizer, reply_tokens(config), launch)


@torch.no_grad()
def score_rows(
    model: ScalarModel,
    rows: list[Row],
    batch_size: int,
    launch: Launch,
    about: Sequence[dict[str, Any]] = (),
    images: Images = None,
) -> list[float]:
    """Score of each row of tokens, by all ranks together; `about`: its "prompt_length", which
    encoder-decoders need, and its "images" for a model that reads any."""
    model.eval()
    own, pad_id = [], pad_of(model.model)
    mine = range(launch.rank, len(rows), launch.world)
    for start in range(0, len(mine), batch_size):
        indices = mine[start : start + batch_size]
        own_rows = [rows[i] for i in indices]
        if model.model.config.is_encoder_decoder:
            begins = [about[i]["prompt_length"] for i in indices]
            read = two_sided(own_rows, begins, pad_id, launch.device)
        else:
            ids, mask = right_pad(own_rows, pad_id)
            read = Rows(ids.to(launch.device), mask.to(launch.device), width=0)
            if images is not None and (found := pictures(images, [about[i] for i in indices])):
                pixels = flat(found.pixels, found.shown)
                read = replace(read, images=None if pixels is None else pixels.to(launch.device))
        with launch.autocast():
            scores = Value(model).score(read)
        own += list(zip(indices, scores.tolist(), strict=True))
    everyone = gather_object(own) if launch.world > 1 else own
    return [score for _, score in sorted(everyone)]


def two_sided(rows: list[Row], prompts: Sequence[int], pad_id: int, device: torch.device) -> Rows:
    """Rows whose first so many tokens are the prompt's, as an encoder-decoder reads them."""
    both = list(zip(rows, prompts, strict=True))
    ids, mask = beside([row[:n] for row, n in both], [row[n:] for row, n in both], pad_id)
    return Rows(ids.to(device), mask.to(device), ids.shape[1] - max(prompts))


def calibrate(
    config: Config,
    model: ScalarModel,
    sft: Path,
    asked: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    launch: Launch,
    texts: TextReward | None = None,
    images: Images = None,
) -> dict[str, float]:
    """Make scores of replies mean 0 and standard deviation 1 (`rescale`): those of the policy in
    `sft`, with `tokenizer`, to the prompts of the rows `asked`.

    Ziegler et al. 2019, section 2. `texts`: how the model reads replies, if not the policy's ids;
    `images`: what is made of the rows'. UserError if the scores do not vary, or are not numbers.
    """
    engine = policy_engine(config, sft, tokenizer, launch)
    batch_size = (config.ppo if config.reward.path else config.reward).microbatch_size
    own: list[Row] = []
    drawn = uniforms(len(asked), reply_tokens(config), config.seed, "calibration")
    drawn = drawn[launch.rank :: launch.world]
    shares = [asked[rank :: launch.world] for rank in range(launch.world)]
    mine = shares[launch.rank]
    for start in range(0, len(mine), batch_size):
        part = slice(start, start + batch_size)
        seen: Any = {} if images is None else {"images": pictures(images, mine[part])}
        rollout = engine.generate([prompt_of(row) for row in mine[part]], drawn[part], **seen)
        ids = [rollout.row(i) for i in range(rollout.ids.shape[0])]
        own += ids if texts is None else texts(rollout, mine[part])
    rows = gather_object(own) if launch.world > 1 else own
    about = [row | {"prompt_length": len(prompt_of(row))} for share in shares for row in share]
    scores = score_rows(model, rows, batch_size, launch, about, images)
    raw = torch.tensor(scores, dtype=torch.float64)
    mean, std = raw.mean().item(), raw.std(correction=0).item()
    if not std > 0:
        raise UserError(
            f"reward: {len(rows)} replies of the stage-1 model all score {mean:.4g}; such a reward "
            "model teaches nothing. Look at the pairs with --data.inspect 5, and lower "
            "reward.learning_rate if the training loss is not a number; or give another "
            "reward.path."
        )
    stock: Any = plain_model(model.model)
    rescale(stock, mean, std)
    model.calibrate()
    launch.say(f"calibrated: mean {mean:.3f}, deviation {std:.3f} -> 0, 1")
    return {"samples": len(rows), "raw_mean": mean, "raw_std": std, "reward_mean": model.mean}


def calibrated_roles(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    parents: dict[str, Parent],
    run: StageRun,
    texts: TextReward | None,
    rows: list[dict[str, Any]],
) -> tuple[Roles, Scale]:
    """The roles of stage 3, and the scale that a reward model from elsewhere was given on `rows`,
    now or before the run was stopped. UserError if what is trained could not be saved."""
    scale = run.resumed.numbers["calibration"] if run.resumed else None
    if config.reward.path is not None and scale is None:
        scale = calibrate_elsewhere(config, parents, tokenizer, texts, rows, run.launch)
    roles = build_roles(config, tokenizer, parents, run.launch, run.resumed, texts, scale)
    for role in roles.trained:
        check_saving(role.unwrapped.model, tokenizer)
    return roles, scale


def calibrate_elsewhere(
    config: Config,
    parents: dict[str, Parent],
    tokenizer: PreTrainedTokenizerBase,
    texts: TextReward | None,
    rows: list[dict[str, Any]],
    launch: Launch,
) -> dict[str, float]:
    """`calibrate` for the reward model of `reward.path`, on replies to stage 3's prompts `rows`."""
    folder, sft = parents["reward"].folder, parents["sft"].folder
    asked = calibration_asked(config, rows, load_config(sft))
    model: Any = load_scalar(folder, tokenizer=texts.tokenizer if texts else tokenizer)
    reward = ScalarModel(model).to(launch.device)
    return calibrate(config, reward, sft, asked, tokenizer, launch, texts)
