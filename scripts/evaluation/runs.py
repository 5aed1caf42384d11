"""What of a run is finished, its models, and the rows that they are judged on."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config import Config
from cores.config.data import SourceSection
from cores.data import prompt_data
from cores.errors import UserError
from cores.models import Actor, ScalarModel, load_policy, load_scalar
from cores.models.actor import rescale
from cores.models.adapters import hold_linears
from cores.models.attention import attend_both_ways
from cores.models.bases import load_base
from cores.models.rows import Policy
from cores.ppo.score import Scorer
from cores.rewards.call import RewardFunctions
from cores.rewards.texts import TextReward
from cores.rollout import build_engine, stop_ids
from cores.runtime.elsewhere import pinned
from cores.runtime.launch import Launch
from cores.runtime.parents import SCRIPTS, Parent, elsewhere, load_parents, policy_tokenizer

LEFT_OUT = "left_out"
RAW = (
    "scores are the reward model's own: one of reward.path is scaled by stage 3, and no finished "
    "stage 3 had this one"
)
Row = dict[str, Any]


@dataclass
class Judged:
    """A run, and what is found of it."""

    config: Config
    launch: Launch
    stages: dict[str, Parent]
    """Those that are finished, or stand in for one."""
    tokenizer: PreTrainedTokenizerBase | None
    """The policy's; None without stage 1."""
    limit: int
    """Held-out prompts at most."""
    found: dict[str, Any] = field(default_factory=dict)
    """What evaluation.json will hold."""

    def leave_out(self, name: str, why: str) -> None:
        """Say once why a figure is not there."""
        left = self.found.setdefault(LEFT_OUT, {})
        if left.get(name) != why:
            left[name] = why
            self.launch.say(f"left out: {name}: {why}")

    @property
    def policies(self) -> dict[str, Path | None]:
        """Folder of each policy, the earliest first; None: stage 1's base."""
        if "sft" not in self.stages:
            return {}
        before = {} if self.stages["sft"].elsewhere else {"base": None}
        names = [name for name in ("sft", "ppo") if name in self.stages]
        return before | {name: self.stages[name].folder for name in names}


def finished(config: Config, launch: Launch, limit: int) -> Judged:
    """What is finished under `output_dir`, checked as stage 3 checks what it starts from.

    UserError if there is nothing, or if something does not fit.
    """
    if launch.world > 1:
        raise UserError("evaluate.py runs as one process; start it with python alone.")
    root = Path(config.output_dir).expanduser()
    names = [s for s in SCRIPTS if (root / s / "stage.json").exists() or elsewhere(config, s)]
    if not names:
        raise UserError(
            f"{root}: no stage is finished there, so there is nothing to judge. Run stage1_sft.py, "
            "stage2_rm.py or stage3_ppo.py with the same --config and --output_dir first, or give "
            "the --output_dir of a run."
        )
    stages = load_parents(config, names)
    tokenizer = policy_tokenizer(config, stages["sft"]) if "sft" in stages else None
    return Judged(config, launch, stages, tokenizer, limit)


def asked(judged: Judged, path: str | None) -> list[Row]:
    """The prompts, in an order of their own, so that theirs in the file does not matter: all of the
    file `path`, or held-out ones of the configuration. UserError if there is none in it."""
    config, launch, tokenizer = judged.config, judged.launch, judged.tokenizer
    assert tokenizer is not None, "there is no policy without stage 1"
    if path is None:
        data = prompt_data(config, tokenizer)
        return in_order(data.test[: judged.limit])
    only = replace(config.data, prompts=SourceSection(path=path), test_fraction=0.0)
    try:
        data = prompt_data(replace(config, data=only), tokenizer)
    except UserError as error:
        text = str(error).replace("data.prompts.path", "--prompts")
        text = text.replace("--data.prompts", "--prompts")
        raise UserError(text.replace("data.prompts:", "--prompts:")) from None
    launch.say(f"prompts{data.report.lines()[0].removeprefix('train')}")
    return in_order(data.train)


def in_order(rows: list[Row]) -> list[Row]:
    """By their ids, and rows with the same ids by what else they hold; `place`: where each was."""
    placed = [{**row, "place": i} for i, row in enumerate(rows)]
    return sorted(placed, key=lambda row: (row["input_ids"], repr(row["row"])))


def loaded(judged: Judged, folder: Path | None) -> Any:
    """The policy in `folder`, frozen, on the device; None: stage 1's base, as stage 1 took it."""
    config = judged.config
    assert judged.tokenizer is not None, "there is no policy without stage 1"
    gc.collect()  # the model before, which its engine may hold in a circle
    if folder is None:
        fresh = config.seed if config.model.from_config else None
        model: Any = load_base(pinned(config).model.path, judged.tokenizer, fresh=fresh)
    else:
        model = load_policy(folder, dropout=False, tokenizer=judged.tokenizer)
    return held(model, judged.launch)


def held(model: Any, launch: Launch) -> Any:
    """Frozen, on the device; linear layers as autocast would round them at each use."""
    if launch.half is not None:
        model = hold_linears(model, launch.half)
    return model.requires_grad_(False).eval().to(launch.device)


@contextmanager
def as_trained(model: Any, attention: str) -> Iterator[Any]:
    """Within it `model` takes rows of stage 1 as stage 1 gives them."""
    if attention == "prefix":
        attend_both_ways(model)
    try:
        yield model
    finally:
        vars(model).pop("forward", None)


def reward_model(judged: Judged, tokenizer: PreTrainedTokenizerBase) -> ScalarModel:
    """The reward model in the units of stage 3."""
    model, raw = in_units(judged.stages, tokenizer)
    if raw:
        judged.leave_out("units of the score", RAW)
    return ScalarModel(held(model, judged.launch))


def in_units(stages: dict[str, Parent], tokenizer: PreTrainedTokenizerBase) -> tuple[Any, bool]:
    """The stock reward model in the units of stage 3's metrics, and whether its scores are raw: one
    from elsewhere is scaled by stage 3 alone, and here as there, if a finished one had it."""
    reward, ppo = stages["reward"], stages.get("ppo")
    model: Any = load_scalar(reward.folder, tokenizer=tokenizer)
    if not reward.elsewhere:
        return model, False
    then = ppo.record["parents"].get("reward", {}) if ppo is not None else {}
    source = reward.record["source"]
    keys = [key for key in ("files", "commit") if key in source]
    same = bool(keys) and all(then.get(key) == source[key] for key in keys)
    scale = ppo.record["metrics"].get("calibration") if ppo is not None and same else None
    if scale is None:
        return model, True
    rescale(model, scale["raw_mean"], scale["raw_std"])
    return model, False


def scorer_of(
    config: Config,
    tokenizer: Any,
    launch: Launch,
    policy: Any,
    reference: Any,
    reward: ScalarModel | None,
    functions: RewardFunctions | None = None,
    texts: TextReward | None = None,
) -> Scorer:
    """What samples from `policy` and judges its replies, as stage 3 does, without a trainer; all
    models on the launch's device, `reference` one as `policy`, which it may be."""
    ppo = config.ppo
    prefix = config.model.attention == "prefix"
    stops, least = stop_ids(ppo, tokenizer), ppo.min_new_tokens
    actor, initial = (
        Actor(model, ppo.temperature, stops, least, prefix=prefix).to(launch.device)
        for model in (policy, reference)
    )
    role = SimpleNamespace(says=Policy(actor), trained=SimpleNamespace(gathered=nullcontext))
    roles: Any = SimpleNamespace(
        actor=role,
        critic=None,
        reward=reward,
        reference=lambda: nullcontext(Policy(initial)),
        texts=texts,
        trained=[],
        sharding=launch.sharding,
        packs=False,
    )
    engine = build_engine(config, policy, tokenizer, ppo.max_new_tokens, launch)
    return Scorer(ppo, roles, engine, launch, config.seed, functions)
