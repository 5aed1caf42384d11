"""What base, SFT and PPO write to the same prompts, and how likely they find held-out rows."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from cores.config import Config
from cores.errors import UserError
from cores.evaluate import evaluate
from cores.models.images import reads_images
from cores.models.loading import load_config
from cores.rewards.call import RewardFunctions
from cores.rewards.load import MODEL, RewardFunction
from cores.rewards.texts import text_reward
from scripts.evaluation.comparisons import compared
from scripts.evaluation.demonstrations import Demonstrations
from scripts.evaluation.gates import Gate
from scripts.evaluation.judges import Judge, JudgeError, Outcomes, Sampled
from scripts.evaluation.runs import Judged, Row, loaded, reward_model, scorer_of
from scripts.evaluation.stats import PLACES, average, ratio, share, wins
from scripts.evaluation.texts import best_of_kl, distinct, expected_best, repeats

STEP = "step-"
"""Begins the names of kept weights."""
MOST_PROMPTS = 128
"""That replies are drawn to for the best of n: most of what an evaluation costs."""


@dataclass
class Table:
    """What judges all policies on the same prompts."""

    judged: Judged
    rows: list[Row]
    """The prompts, as `asked` gives them."""
    config: Config
    """With the sources of the score that are there."""
    reference: Any
    """Stage 1's model."""
    reward: Any
    """The reward model, if it is a source."""
    functions: RewardFunctions | None

    @property
    def scored(self) -> bool:
        """Whether there is a score."""
        return bool(self.config.ppo.rewards)

    def sampled(self, policy: Any, samples: int = 1) -> Sampled:
        """Replies of `policy`, `samples` in a row to each prompt."""
        config, judged = self.config, self.judged
        rows = [row for row in self.rows for _ in range(samples)]
        texts = None
        if self.reward is not None and judged.tokenizer is not None:
            texts = text_reward(config, judged.tokenizer, judged.stages, rows)
        models = policy, self.reference, self.reward
        launch, functions = judged.launch, self.functions
        scorer = scorer_of(config, judged.tokenizer, launch, *models, functions, texts)
        ids = [row["input_ids"] for row in rows]
        return Sampled.of(judged, evaluate(scorer, ids, rows))

    def figures(self, sampled: Sampled) -> dict[str, Any]:
        """Of one policy: each with its interval by prompt; `rows`: single replies' values."""
        found, prompts = sampled.evaluation, [row["prompt"] for row in self.rows]
        lengths = [float(n) for n in found.lengths]
        columns = {"score": found.scores} if self.scored else {}
        columns |= {"kl": found.kl, "length": lengths}
        shares = {"ended": [float(end) for end in found.ended]}
        shares |= {"repetition": [float(repeats(text)) for text in sampled.texts]}
        result: dict[str, Any] = {k: average(v, prompts).to_json() for k, v in columns.items()}
        result |= {name: share(values, prompts).to_json() for name, values in shares.items()}
        result["kl_token"] = ratio(found.kl, lengths, prompts).to_json()
        result |= {f"distinct_{n}": distinct(sampled.texts, n).to_json() for n in (1, 2)}
        for name, part in found.parts.items():
            said = [(x, p) for x, p in zip(part, prompts, strict=True) if x is not None]
            if said:
                values, theirs = zip(*said, strict=True)
                result[f"score_{name}"] = average(values, theirs).to_json()
        result["rows"] = {k: [round(x, PLACES) for x in v] for k, v in columns.items()}
        return result


def table_of(
    judged: Judged, rows: list[Row], reference: Any, functions: dict[str, RewardFunction]
) -> Table:
    """Judges by the sources of `ppo.rewards` that are there; functions by their source."""
    config = judged.config
    rewards = dict(config.ppo.rewards)
    if MODEL in rewards and "reward" not in judged.stages:
        del rewards[MODEL]
        judged.leave_out("score" if not rewards else "score_model", "stage 2 is not finished")
    ppo = replace(config.ppo, rewards=rewards, critic_init=None)
    config = replace(config, ppo=ppo)
    own = {source: functions[source] for source in rewards if source != MODEL}
    tokenizer: Any = judged.tokenizer
    called = RewardFunctions(ppo, tokenizer, own) if own else None
    reward = None
    if MODEL in rewards:
        fits = text_reward(config, tokenizer, judged.stages, rows)
        reward = reward_model(judged, fits.tokenizer if fits else tokenizer)
    return Table(judged, rows, config, reference, reward, called)


def judge_policies(
    judged: Judged,
    rows: list[Row],
    functions: dict[str, RewardFunction],
    judge: Judge | None,
    gate: Gate | None,
    best_of: int,
) -> None:
    """Adds `language` and `perplexity`; and where there are prompts `policies`, `comparisons`,
    `frontier`, `best_of_n`, `samples`, `kl` and `win_rate`; with a gate `refused_prompts`."""
    demonstrations = Demonstrations.held_out(judged)
    reference = loaded(judged, judged.stages["sft"].folder)
    if rows and reads_images(load_config(judged.stages["sft"].folder)):
        judged.leave_out("policies", "they read images, which this script hands to none")
        rows = []
    table = table_of(judged, rows, reference, functions) if rows else None
    language: dict[str, Any] = {}
    said: dict[str, Sampled] = {}
    for name, folder in judged.policies.items():
        try:
            model = reference if name == "sft" else loaded(judged, folder)
        except UserError as error:
            if name != "base":
                raise
            judged.leave_out("base", str(error))
            continue
        if demonstrations is not None:
            language[name] = demonstrations.losses(judged, model)
        if table is not None:
            judged.launch.say(f"{name}: replies to {len(rows)} prompts")
            said[name] = table.sampled(model)
        del model
    if demonstrations is not None:
        count = len(demonstrations.rows)
        judged.found["language"] = {"rows": count, **language}
        judged.found["perplexity"] = language["sft"]["perplexity"]
    if table is not None:
        _compare(table, said, judge)
        if gate is not None:
            _pass(table, said, gate)
        _frontier(table, said, best_of)


def _compare(table: Table, said: dict[str, Sampled], judge: Judge | None) -> None:
    """Each policy by itself, against the one before it, and what it wrote."""
    found, rows = table.judged.found, table.rows
    prompts = [row["prompt"] for row in rows]
    found["policies"] = {name: table.figures(sampled) for name, sampled in said.items()}
    for name, sampled in said.items() if judge is not None else ():
        assert judge is not None
        if (scores := judge.scores(rows, sampled)) is not None:
            found["policies"][name]["judge"] = average(scores, prompts).to_json()
    found["comparisons"] = []
    for before, after in pairwise(said):
        first, second = said[after], said[before]
        by: dict[str, Outcomes] = {}
        if table.scored:
            by["score"] = list(wins(first.evaluation.scores, second.evaluation.scores))
        if judge is not None:
            try:
                by["judge"] = judge.outcomes(rows, first, second)
            except JudgeError as error:
                table.judged.leave_out(f"judge of {after} over {before}", str(error))
        lengths = [(len(a), len(b)) for a, b in zip(first.texts, second.texts, strict=True)]
        for name, outcomes in by.items():
            about = {"of": after, "over": before, "by": name}
            found["comparisons"].append(about | compared(outcomes, lengths, prompts))
    if found["comparisons"]:
        of, by_name = found["comparisons"][-1]["of"], "score" if table.scored else "judge"
        for row in found["comparisons"]:
            if row["of"] == of and row["by"] == by_name:
                found["win_rate"] = row["win_rate"]
    if "ppo" in said:
        found["kl"] = found["policies"]["ppo"]["kl"]
    places = sorted(range(len(rows)), key=lambda i: rows[i]["place"])
    found["samples"] = [
        {
            "prompt": _asked(rows[i]),
            **{name: _reply(sampled, i, table.scored) for name, sampled in said.items()},
        }
        for i in places
    ]


def _pass(table: Table, said: dict[str, Sampled], gate: Gate) -> None:
    """Share of the prompts, and of each policy's replies, that the gate refuses; why, by sample."""
    found, prompts = table.judged.found, [row["prompt"] for row in table.rows]
    places = {row["place"]: i for i, row in enumerate(table.rows)}
    stopped = [float(gate(_asked(row)) is not None) for row in table.rows]
    found["refused_prompts"] = share(stopped, prompts).to_json()
    for name, sampled in said.items():
        table.judged.launch.say(f"{name}: replies through the gate")
        reasons = [gate(text) for text in sampled.texts]
        refused = share([float(why is not None) for why in reasons], prompts)
        found["policies"][name]["refused"] = refused.to_json()
        for place, sample in zip(sorted(places), found["samples"], strict=True):
            sample[name]["refused"] = reasons[places[place]]


def _asked(row: Row) -> str:
    """The last thing that was said before the reply, as it stands in the file."""
    last = row["turns"][-1]
    return str(row["prompt"] if last["role"] == "text" else last["content"])


def _reply(sampled: Sampled, i: int, scored: bool) -> dict[str, Any]:
    found = sampled.evaluation
    score = round(found.scores[i], PLACES) if scored else None
    return {"reply": sampled.texts[i], "score": score, "kl": round(found.kl[i], PLACES)}


def _frontier(table: Table, said: dict[str, Sampled], best_of: int) -> None:
    """Score over KL: of the weights that stage 3 kept, and of the best of n of stage 1's replies,
    which is what the same KL buys without training."""
    judged, rows = table.judged, table.rows
    if not table.scored:
        return
    points = []
    if "ppo" in judged.stages:
        kept = judged.stages["ppo"].folder / "weights"
        steps = [int(f.name.removeprefix(STEP)) for f in kept.glob(f"{STEP}*")]
        for step in sorted(steps):
            judged.launch.say(f"kept weights of update {step}")
            sampled = table.sampled(loaded(judged, kept / f"{STEP}{step}"))
            points.append({"name": f"{STEP}{step}", **_point(sampled, rows)})
        points.append({"name": "ppo", **_point(said["ppo"], rows)})
    judged.found["frontier"] = [{"name": "sft", **_point(said["sft"], rows)}, *points]
    if best_of > 1:
        judged.launch.say(f"sft: {best_of} replies a prompt, for the best of n")
        judged.found["best_of_n"] = _best_of_n(table, best_of)


def _point(sampled: Sampled, rows: list[Row]) -> dict[str, Any]:
    found, prompts = sampled.evaluation, [row["prompt"] for row in rows]
    return {
        "kl": average(found.kl, prompts).to_json(),
        "score": average(found.scores, prompts).to_json(),
    }


def _best_of_n(table: Table, most: int) -> list[dict[str, Any]]:
    """Of n = 1, 2, 4 ... `most`: the expected score of the best by what PPO maximises, the score
    less the missing-EOS penalty, and its KL (an upper bound: `best_of_kl`); on some prompts."""
    table = replace(table, rows=table.rows[:: -(-len(table.rows) // MOST_PROMPTS)])
    found = table.sampled(table.reference, most).evaluation
    penalty, prompts = table.config.ppo.missing_eos_penalty, [row["prompt"] for row in table.rows]
    wanted = [s - penalty * (not e) for s, e in zip(found.scores, found.ended, strict=True)]
    starts = range(0, len(wanted), most)
    counts = sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})
    curve = []
    for n in counts:
        parts = (slice(start, start + most) for start in starts)
        best = [expected_best(wanted[part], found.scores[part], n) for part in parts]
        point = {"n": n, "kl": round(best_of_kl(n), PLACES)}
        curve.append({**point, "score": average(best, prompts).to_json()})
    return curve
