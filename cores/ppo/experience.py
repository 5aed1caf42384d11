"""The type that travels from rollout to update, what the update learns from, and its figures.
Shapes as in `Rollout`: B rows, L = P + T tokens. One alignment throughout: index t of every (B, T)
tensor is response token t, and values[:, t] is the value of the state before it. What lies outside
`response_mask` has no meaning."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from cores import rl
from cores.config import PPOSection
from cores.config.ppo import ESTIMATORS
from cores.models.rows import Packing, Rows, on_device, pack, replies, rounded
from cores.rl.coati import coati_advantages, coati_rewards
from cores.rollout.pictures import flat
from cores.runtime.launch import Launch

Lengths = Sequence[tuple[int, int]]
"""Prompt and response tokens of each row. A forward pass pads both to their longest."""
Stats = dict[str, float]
Unread = dict[str, Tensor | float]
"""Statistics that may still be on the device, 0-d: to read one is to wait for all before it."""
S = TypeVar("S", bound="Scored")


@dataclass(frozen=True)
class Scored:
    """A rollout and what the models say of it."""

    ids: Tensor
    """(B, L) int64: prompt (left-padded) then response (right-padded)."""
    mask: Tensor
    """(B, L) bool: tokens of the row."""
    response_mask: Tensor
    """(B, T) bool: response tokens, the stop token included."""
    ended: Tensor
    """(B,) bool: whether the reply stopped by itself."""
    rollout_logprobs: Tensor
    """(B, T) nats: of the tokens as the engine sampled them."""
    logprobs: Tensor
    """(B, T) nats: of the same tokens under the actor, teacher-forced, or where the engine proved
    equal those it sampled with; the old log-probs of PPO."""
    ref_logprobs: Tensor
    """(B, T) nats: under the reference."""
    entropy: Tensor | None
    """(B, T) nats: of the actor's distribution before each token; None if only the update's own
    passes will tell."""
    values: Tensor
    """(B, T) score units: the critic's."""
    scores: Tensor
    """(B,) score units: the weighted sum of the sources'."""
    score_parts: Tensor
    """(B, S) score units: of each source of `ppo.rewards`, in its order, before the weights;
    NaN where a function says None."""
    images: Tensor | None = field(default=None, kw_only=True)
    """(B, M, C, H, W) and `shown` (B, M): see `Rollout`."""
    shown: Tensor | None = field(default=None, kw_only=True)
    packing: Packing | None = field(default=None, kw_only=True)
    """Of rows that were selected to be read without their padding."""

    @property
    def rows(self) -> Rows:
        """What models read."""
        images = None if self.images is None else flat(self.images, self.shown)
        width = self.response_mask.shape[1]
        return Rows(self.ids, self.attended, width, images, self.packing)

    @property
    def response_ids(self) -> Tensor:
        """(B, T) int64."""
        return replies(self.ids, self.response_mask.shape[1])

    @cached_property
    def lengths(self) -> Lengths:
        """Prompt and response tokens of each row, on the host: the device is asked once."""
        both = torch.stack([self.mask.sum(dim=1), self.response_mask.sum(dim=1)], dim=1)
        return [(row - response, response) for row, response in both.tolist()]

    @property
    def layout(self) -> tuple[bool, int]:
        """What a captured pass knows of the rows beside the shapes of `tensors`."""
        return self.attended is None, self.packing.longest if self.packing else 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them, by name: the columns and those of `packing`."""
        places = self.packing.tensors if self.packing else {}
        return columns(self) | {f"packed_{name}": place for name, place in places.items()}

    def holding(self: S, tensors: dict[str, Tensor]) -> S:
        """Rows with such tensors in these rows' places."""
        own: Any = {name: tensors[name] for name in columns(self)}
        if self.packing is not None:
            places: Any = {name: tensors[f"packed_{name}"] for name in self.packing.tensors}
            own["packing"] = self.packing._replace(**places)
        result = replace(self, **own)
        vars(result)["lengths"] = self.lengths  # read for padding alone
        return result

    @cached_property
    def attended(self) -> Tensor | None:
        """The mask for a model, or None where no row has padding: models attend to all then."""
        width = self.response_mask.shape[1]
        full = (self.mask.shape[1] - width, width)
        return self.mask if any(found != full for found in self.lengths) else None

    def to(self: S, device: torch.device | str) -> S:
        """The same on another device."""
        there: Any = {name: x.to(device) for name, x in columns(self).items()}
        return replace(self, **there)

    def as_selected(self, lengths: Lengths, widths: int) -> Lengths:
        """`lengths` of some of the rows as `select` makes them: where there is any padding, they
        are rounded up to multiples of `widths`."""
        if self.attended is None:
            return lengths
        return [(-(-p // widths) * widths, -(-r // widths) * widths) for p, r in lengths]

    def select(self: S, rows: Sequence[int], widths: int = 1, packed: bool = False) -> S:
        """The given rows, as wide as the longest prompt and response `as_selected`.

        `packed`: models will read them without the padding, if there is any and each prompt has a
        token, which the first one of its reply comes from. Then with `widths`
        there may be rows of nothing behind them, and all are as wide as the widest of `self`, so
        that shapes come again: to flash attention it is nothing.
        """
        lengths: Lengths = [self.lengths[i] for i in rows]
        wide, taken = lengths, list(rows)
        packed = packed and all(prompt for prompt, _ in self.lengths)
        coarse = packed and widths > 1 and self.attended is not None
        if coarse:
            taken += taken[:1] * (rounded(len(rows)) - len(rows))
            wide = self.lengths
        index = on_device(taken, self.ids.device)
        found = {name: column[index] for name, column in columns(self).items()}
        for name in ("mask", "response_mask"):
            found[name][len(rows) :] = False
        lengths = [*lengths, *[(0, 0)] * (len(taken) - len(rows))]
        asked, responses = zip(*self.as_selected(wide, widths), strict=True)
        prompt, response = max(1, *asked), max(1, *responses)
        packing = None
        if packed and any(each != (prompt, response) for each in lengths):
            packing = pack(lengths, prompt, response, coarse).on(index.device)
        result = replace(self, **_fitted(found, prompt, response), packing=packing)
        vars(result)["lengths"] = lengths
        return result


@dataclass(frozen=True)
class Experience(Scored):
    """What an update learns from."""

    rewards: Tensor
    """(B, T) score units: the score at the end, less the price of KL at every token."""
    advantages: Tensor
    """(B, T): whitened if so configured."""
    returns: Tensor
    """(B, T) score units: targets of the critic."""


def columns(scored: Scored) -> dict[str, Tensor]:
    """The columns that there are, by name."""
    found = {f.name: getattr(scored, f.name) for f in fields(scored)}
    return {name: column for name, column in found.items() if isinstance(column, Tensor)}


def _fitted(found: dict[str, Tensor], prompt: int, response: int) -> dict[str, Any]:
    """Columns with so many prompt and response positions: prompts end, replies begin where they
    did."""
    right = response - found["response_mask"].shape[1]
    left = prompt + response - right - found["mask"].shape[1]

    def fit(name: str, value: Tensor) -> Tensor:
        # A padded id is never attended; 0 is in every vocabulary.
        if name in ("ids", "mask"):
            return pad(value, (left, right))
        by_token = value.dim() == 2 and name not in ("score_parts", "shown")
        return pad(value, (0, right)) if right and by_token else value

    return {name: fit(name, value) for name, value in found.items()} if left or right else found


def gather_rows(scored: Scored, launch: Launch) -> Scored:
    """The rows of all ranks, in rank order, on every rank.

    A rollout is small beside the models, and with all of it everywhere, whitening, minibatches and
    statistics are global by construction: the same numbers however many processes there are.
    """
    if launch.world == 1:
        return scored
    rows = {name: column.cpu() for name, column in columns(scored).items()}
    return replace(scored, **_concatenate(gather_object([rows]), launch.device))


def _concatenate(parts: list[dict[str, Tensor]], device: torch.device) -> dict[str, Any]:
    widths = [part["response_mask"].shape[1] for part in parts]
    prompt = max(p["mask"].shape[1] - width for p, width in zip(parts, widths, strict=True))
    fitted = [_fitted(part, prompt, max(widths)) for part in parts]
    return {name: torch.cat([part[name] for part in fitted]).to(device) for name in fitted[0]}


def estimate(scored: Scored, ppo: PPOSection, kl_coef: float) -> Experience:
    """Rewards a token, advantages and returns, over the rows of all ranks."""
    mask, group = scored.response_mask, ppo.samples_per_prompt
    prices = ppo.missing_eos_penalty, ppo.length_penalty, ppo.reward_clip
    scores = rl.adjust_scores(scored.scores, scored.ended, mask.sum(dim=1), *prices)
    in_reward = kl_coef if ppo.kl_in == "reward" else 0.0
    kl = rl.kl_estimate(scored.logprobs, scored.ref_logprobs, ppo.kl_kind, mask)
    rewards = rl.shape_rewards(scores, kl, mask, in_reward)
    returns = torch.zeros_like(rewards)  # of estimators without a critic
    if ppo.estimator == "gae":
        advantages, returns = rl.gae(rewards, scored.values, mask, ppo.gamma, ppo.lam)
    elif ppo.estimator == "grpo":
        advantages = rl.grpo(rewards, mask, group, ppo.group_std)
    elif ppo.estimator == "rloo":
        advantages = rl.rloo(rewards, mask, group)
    elif ppo.estimator == "reinforce_pp":
        advantages = rl.reinforce_pp(rewards, mask, ppo.gamma)
    else:
        told, switches = (scored.logprobs, scored.ref_logprobs, mask), ppo.coati
        total = coati_rewards(scores, *told, kl_coef, switches.reversed_kl)
        rewards = rl.shape_rewards(total, torch.zeros_like(scored.logprobs), mask, kl_coef=0.0)
        seen, pace = (scored.values, mask, switches.r_minus_v), (ppo.gamma, ppo.lam)
        advantages, returns = coati_advantages(total, *seen, *pace)
    wanted = ppo.whiten_advantages
    if wanted or (wanted is None and ESTIMATORS[ppo.estimator].whitens):
        advantages = rl.whiten(advantages, mask)
    known = {f.name: getattr(scored, f.name) for f in fields(Scored)}
    return Experience(**known, rewards=rewards, advantages=advantages, returns=returns)


def describe(
    experience: Experience, sources: list[str], critic: bool, reused: bool = False
) -> Stats:
    """What the rollout was like, before the update; `sources`: names of several, see `Scorer`.

    reused: the old log-probs are the engine's, so there is no mismatch to tell of.
    """
    e, mask = experience, experience.response_mask
    kl = rl.kl_estimate(e.logprobs, e.ref_logprobs, "k1", mask)
    stats: Unread = {
        "score": e.scores.mean(),
        "score_std": e.scores.std(correction=0),
        "kl": kl.sum(dim=1).mean(),
        "kl_std": kl.sum(dim=1).std(correction=0),
        "response_length": mask.sum(dim=1).float().mean(),
        "ended": e.ended.float().mean(),
        "repetition": rl.repetition(replies(e.ids, mask.shape[1]), mask).mean(),
        "reward": e.rewards.sum(dim=1).mean(),
    }
    if e.entropy is not None:
        stats["entropy"] = rl.masked_mean(e.entropy, mask)
    if not reused:
        gap = torch.where(mask, e.logprobs - e.rollout_logprobs, 0.0)
        k3 = rl.kl_estimate(e.rollout_logprobs, e.logprobs, "k3", mask)
        stats |= {"rollout_logprob_gap": gap.abs().max(), "rollout_kl": rl.masked_mean(k3, mask)}
        ratio = gap.clamp(max=30).exp()  # a file of metrics holds no infinity
        stats |= {"rollout_ratio": rl.masked_mean(ratio, mask), "rollout_ratio_max": ratio.max()}
        outside = ((ratio - 1).abs() > 0.1).float()
        stats["rollout_ratio_outside"] = rl.masked_mean(outside, mask)
    if critic:
        stats["explained_variance"] = rl.explained_variance(e.values, e.returns, mask)
    for name, part in zip(sources, e.score_parts.unbind(dim=1), strict=bool(sources)):
        stats[f"score_{name}"] = part.nanmean()
        stats[f"unscored_{name}"] = part.isnan().float().sum()
    found = read([stats])[0]
    for name in sources:  # told only where there is something to tell
        if not found[f"unscored_{name}"]:
            del found[f"unscored_{name}"]
        elif found[f"unscored_{name}"] == len(e.scores):
            del found[f"score_{name}"]
    return found


def read(steps: list[Unread]) -> list[Stats]:
    """The same as numbers, by one transfer from the device."""
    waiting = [value for step in steps for value in step.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack(waiting).tolist() if waiting else [])
    return [
        {name: next(numbers) if isinstance(x, Tensor) else x for name, x in step.items()}
        for step in steps
    ]


def average(steps: list[Stats]) -> Stats:
    """Mean over the optimizer steps of an update (the largest of `_max`).

    What only the first ones measured is a mean over those.
    """
    merged = {}
    for name in steps[0]:
        values = [step[name] for step in steps if name in step]
        merged[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return merged
