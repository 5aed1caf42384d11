"""Stage 3 from first to last update: prompts, status lines, sample replies, saving."""

import math
import reprlib
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cores.config import Config
from cores.config.ppo import WITH_CRITIC
from cores.data import StageData, readable, sft_data
from cores.data.sides import TEXT, Inputs
from cores.draws import in_epochs, share
from cores.errors import UserError
from cores.evaluate import Evaluation, evaluate, sample_pairs
from cores.models import save_model
from cores.models.actor import plain_model
from cores.models.bases import check_encoder
from cores.models.images import Images, reads_images
from cores.models.loading import check_length, check_scalar, load_config
from cores.ppo.experience import Experience, Stats
from cores.ppo.one_base import bases
from cores.ppo.ptx import PtxRows
from cores.ppo.roles import Roles, TrainedRole
from cores.ppo.score import Row
from cores.ppo.trainer import PPOTrainer
from cores.rewards.call import RewardFunctions
from cores.rewards.load import RewardFunction
from cores.rollout import build_engine, check_engine, text_matcher
from cores.run import StageRun
from cores.runtime.launch import Launch
from cores.runtime.parents import Parent

SAMPLES = 4
"""Sample replies written each time."""
SHORT = reprlib.Repr()
"""Of a sample on the screen; control characters are escaped."""
SHORT.maxstring = 100


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


def check_models(
    config: Config, parents: dict[str, Parent], zero_stage: int = 0
) -> PretrainedConfig:
    """The configuration of stage 1's model. UserError if its architecture cannot be a critic where
    one is needed, or does not go with an option; if models are too short for prompts and replies;
    or if roles must share a base and cannot."""
    model = load_config(parents["sft"].folder)
    check_encoder(config, model, "ppo", zero_stage)
    if config.ppo.estimator in WITH_CRITIC or reads_images(model):
        check_scalar(model, parents["sft"].key)
    judges = [p for p in parents.values() if p.stage == "reward" and not p.elsewhere]
    tokens = config.ppo.max_prompt_length + config.ppo.max_new_tokens
    for each in (model, *(load_config(judge.folder) for judge in judges)):
        check_length(each, tokens, "ppo.max_prompt_length + ppo.max_new_tokens")
    bases(config, parents, None, zero_stage)
    return model


def needed_stages(config: Config) -> list[str]:
    """Stages that must be finished: without the reward model as a source, stage 1 alone."""
    return ["sft", "reward"] if "model" in config.ppo.rewards else ["sft"]


def ptx_data(
    config: Config, tokenizer: PreTrainedTokenizerBase, takes: Inputs = TEXT
) -> StageData | None:
    """Stage 1's data, where its loss is mixed in."""
    if not config.ppo.ptx_coef:
        return None
    data = sft_data(config, tokenizer, takes)
    assert isinstance(data, StageData)  # streams are refused with the configuration
    return data


def build_trainer(
    config: Config,
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    launch: Launch,
    functions: dict[str, RewardFunction] | None = None,
    mixed_in: StageData | None = None,
    images: Images = None,
) -> PPOTrainer:
    """The trainer with its rollout engine, which samples from the actor's own weights; `mixed_in`:
    what `ptx_data` gave."""
    ppo, model = config.ppo, plain_model(roles.actor.unwrapped.model)
    engine = build_engine(config, model, tokenizer, ppo.max_new_tokens, launch, trains=True)
    called = RewardFunctions(ppo, tokenizer, functions) if functions else None
    ptx = None
    if mixed_in is not None:
        size, pad_id = ppo.minibatch_size, tokenizer.pad_token_id
        ptx = PtxRows(mixed_in.train, size, pad_id, config.seed, launch.device)
    return PPOTrainer(ppo, roles, engine, launch, config.seed, called, ptx, config.faults, images)


def train(
    trainer: PPOTrainer, data: StageData, tokenizer: PreTrainedTokenizerBase, run: StageRun
) -> dict[str, Any]:
    """The updates that are left, with an evaluation before the first and behind the last; returns
    what stage.json keeps of them."""
    config, launch, state = run.config, trainer.launch, trainer.state
    ppo = config.ppo
    held_out = data.test[: ppo.eval_prompts]
    if run.resumed is not None:
        trainer.load_state_dict(run.resumed)
        state = trainer.state
    elif (found := _evaluate(trainer, held_out, "before")) is not None:
        run.metrics.held_out(0, found.summary())
        kept = found if config.logging.samples else replace(found, rows=[], replies=[])
        state.before = vars(kept)
    size = ppo.batch_size // ppo.samples_per_prompt
    run.going_on(ppo.updates, trainer.roles.actor.unwrapped.model)
    while state.update < ppo.updates:
        start, update = time.monotonic(), state.update + 1
        first = 0 if ppo.estimator == "coati" and ppo.coati.same_prompts else state.update * size
        numbers = in_epochs(len(data.train), first, size, config.seed, "prompts")
        rows = [data.train[i] for i in share(numbers, launch.rank, launch.world)]
        experience, stats = trainer.step([row["input_ids"] for row in rows], rows)
        tokens = int(experience.response_mask.sum())
        stats["tokens_per_second"] = tokens / (time.monotonic() - start)
        run.log(update, stats, shown(stats))
        if ppo.sample_every and update % ppo.sample_every == 0:
            make = partial(_samples, tokenizer, experience, update)
            _show(run, update, run.samples("samples.jsonl", make))
        if ppo.eval_every and update % ppo.eval_every == 0 and update < ppo.updates:
            _look(trainer, held_out, tokenizer, run)
        if (every := config.checkpoint.keep_weights) and update % every == 0:
            place = run.path / f"weights/step-{update}"
            save_role(trainer, trainer.roles.actor, tokenizer, place)
        save, stop = run.look(update, last=update == ppo.updates)
        if save:
            run.save(update, trainer.state_dict())
        if stop:
            run.leave(update, ppo.updates)
    run.stepped()
    after = run.optional("the evaluation", lambda: _evaluate(trainer, held_out, "after"))
    return _result(trainer, held_out, after, tokenizer, run)


def _result(
    trainer: PPOTrainer,
    held_out: list[Row],
    after: Evaluation | None,
    tokenizer: PreTrainedTokenizerBase,
    run: StageRun,
) -> dict[str, Any]:
    """What stage.json keeps; the evaluations go to the trackers and samples to their file."""
    state = trainer.state
    result: dict[str, Any] = {
        "updates": state.update,
        "optimizer_steps": trainer.roles.actor.steps,
        "last": run.last_row(),
    }
    if state.before is not None:
        before = Evaluation(**state.before)
        result |= {"before": before.summary(), "after": after and after.summary()}
        if after is not None and before.rows:
            texts = [row["prompt"] for row in held_out]
            pairs = partial(sample_pairs, tokenizer, texts, before, after)
            run.samples("held_out_samples.jsonl", pairs, anew=True)
        if after is not None:
            run.metrics.held_out(state.update, after.summary())
    if state.best:
        result["best"] = state.best
    if state.calibration is not None:
        result["calibration"] = state.calibration
    return result


def _look(
    trainer: PPOTrainer, held_out: list[Row], tokenizer: PreTrainedTokenizerBase, run: StageRun
) -> None:
    """An evaluation in between; the best policy so far is kept if that is asked for."""
    state, limit = trainer.state, run.config.ppo.keep_best
    found = _evaluate(trainer, held_out, f"update {state.update}")
    if found is None:
        return
    summary = found.summary()
    run.append("evaluations.jsonl", [{"update": state.update, **summary}])
    run.metrics.held_out(state.update, summary)
    better = not state.best or summary["score"] > state.best["score"]
    if limit is not None and summary["kl"] <= limit and better:
        state.best = {"update": state.update, **summary}
        save_role(trainer, trainer.roles.actor, tokenizer, run.path / "weights/best")


def shown(stats: Stats) -> str:
    """The figures of an update on the screen."""
    parts = {  # the critic's warm-up clips nothing, and not every estimator has a critic
        "score": "{score:+.3f}",
        "kl": "{kl:.3f}",
        "entropy": "{entropy:.3f}",
        "clip": "{clip_fraction:.1%}" if "clip_fraction" in stats else "",
        "ev": "{explained_variance:+.2f}" if "explained_variance" in stats else "",
        "length": "{response_length:.1f}",
        "ended": "{ended:.0%}",
    }
    told = [f"{name} {form.format(**stats)}" for name, form in parts.items() if form]
    return "  ".join([*told, f"{stats['tokens_per_second']:.0f} tok/s"])


def save_roles(trainer: PPOTrainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The actor in `folder`, the critic in `folder`/critic in the reward model's form."""
    roles = trainer.roles
    roles.check_base()
    for role, part in zip(roles.trained, ("", "critic"), strict=False):
        save_role(trainer, role, tokenizer, folder / part)


def save_role(
    trainer: PPOTrainer, role: TrainedRole, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """An ordinary folder of the role's model, written by the main process."""
    merge, images = trainer.config.lora.merge, trainer.images
    with role.trained.gathered():  # every rank takes part where weights are sharded
        if role.trained.accelerator.is_main_process:
            save_model(role.unwrapped.model, tokenizer, folder, merge, images)


def _evaluate(trainer: PPOTrainer, rows: list[Row], when: str) -> Evaluation | None:
    if not rows:
        return None
    result = evaluate(trainer, [row["input_ids"] for row in rows], rows)
    s = result.summary()
    trainer.launch.say(
        f"{when}: score {s['score']:+.3f} +- {s.get('score_interval', math.inf):.3f}  "
        f"kl {s['kl']:.3f} +- {s.get('kl_interval', math.inf):.3f}  length {s['length']:.1f}  "
        f"({s['prompts']} held-out prompts, 95% intervals)"
    )
    return result


def _show(run: StageRun, update: int, rows: list[dict[str, Any]]) -> None:
    """Samples of an update: all to the trackers, one to the screen."""
    if rows:
        run.metrics.samples(update, rows)
        asked, said = (SHORT.repr(rows[0][name]) for name in ("prompt", "reply"))
        run.launch.say(f"sample: {asked} -> {said} (score {rows[0]['score']:+.2f})")


def _samples(
    tokenizer: PreTrainedTokenizerBase, experience: Experience, update: int
) -> list[dict[str, Any]]:
    rows = []
    for i in range(min(SAMPLES, experience.ids.shape[0])):
        reply = experience.response_ids[i][experience.response_mask[i]]
        prompt = experience.ids[i][experience.mask[i]][: -len(reply)]
        rows.append(
            {
                "update": update,
                "prompt": readable(tokenizer, prompt.tolist()),
                "reply": readable(tokenizer, reply.tolist()),
                "score": round(experience.scores[i].item(), 4),
            }
        )
    return rows
