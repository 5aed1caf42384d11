"""Data and stages 1 and 2 made sick, for scripts/doctor_trials.py: files, options, and the rule
that is meant."""

import json
import random
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
SFT, PAIRS, PROMPTS = "data.sft", "data.preference", "data.prompts"
NAMES = {SFT: "sft", PAIRS: "preference", PROMPTS: "prompts"}
SCRIPTS = {"sft": "stage1_sft", "reward": "stage2_rm", "ppo": "stage3_ppo"}
BEFORE = {"sft": (), "reward": ("sft",), "ppo": ("sft", "reward")}
PAID = '{"scripts/trials/rewards.py:noise":1.0}'


def turned(share: float) -> Callable[[Rows], Rows]:
    """So many pairs labelled the other way round."""

    def change(rows: Rows) -> Rows:
        draw = random.Random(0)
        other = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
        return [o if draw.random() < share else r for r, o in zip(rows, other, strict=True)]

    return change


def longer(rows: Rows) -> Rows:
    """The chosen reply has a sentence more."""
    return [{**r, "chosen": f"{r['chosen']} We are glad to be of help to you."} for r in rows]


def one_reply(rows: Rows) -> Rows:
    """One reply to everything."""
    return [{**row, "completion": "Yes."} for row in rows]


Change = Callable[[Rows], Rows]
Trial = tuple[str, tuple[str, ...], dict[str, Change], str]
"""The rule that is meant, stages, how files change, options."""
SICK: dict[str, Trial] = {
    "one row": ("sft_overfit", ("sft",), {SFT: lambda r: r[:1]}, "--sft.max_steps 60"),
    "40 rows, 300 times": ("data_repeated", ("sft",), {SFT: lambda r: r[:40] * 300},
                           "--sft.max_steps 200"),
    "replies that are cut": ("data_truncated", ("sft",), {},
                             "--sft.max_length 26 --sft.max_steps 20"),
    "a rate of 1": ("rate_high", ("sft",), {}, "--sft.learning_rate 1 --sft.max_steps 60"),
    "a rate of 1e-7": ("rate_low", ("sft",), {}, "--sft.learning_rate 1e-7 --sft.max_steps 60"),
    "40% of the pairs turned round": (
        "reward_chance", ("reward",), {PAIRS: turned(0.4)}, "--reward.max_steps 200"),
    "40%, and of those held out": (
        "reward_chance", ("reward",), {PAIRS: turned(0.4), f"{PAIRS}.test": turned(0.4)},
        "--reward.max_steps 200"),
    "half of the pairs turned round": (
        "reward_chance", ("reward",), {PAIRS: turned(0.5)}, "--reward.max_steps 150"),
    "a sentence more in what is chosen": (
        "reward_length", ("reward",), {PAIRS: longer, f"{PAIRS}.test": longer},
        "--reward.max_steps 60"),
    "60 pairs, 200 times": ("data_repeated", ("reward",), {PAIRS: lambda r: r[:60] * 200},
                            "--reward.max_steps 20"),
    "held-out pairs that are trained on": (
        "data_leaked", ("reward",), {PAIRS: lambda r: r[:2000]},
        "--reward.max_steps 5 --data.preference.test_path {out}/preference.jsonl"),
    "one prompt": ("data_repeated", ("ppo",), {PROMPTS: lambda r: r[:1] * 4000}, ""),
    "one reply to everything": (
        "entropy_collapse", ("sft", "ppo"), {SFT: one_reply},
        f"--sft.max_steps 80 --ppo.critic_init zero --ppo.rewards {PAID}"),
}  # fmt: skip


def tried(name: str, run: Path, out: Path, common: str) -> None:
    """Run a trial's stages, which start from the demo in `run`, as far as they get."""
    _, stages, changes, options = SICK[name]
    out.mkdir(parents=True)
    for stage in BEFORE[stages[0]]:
        shutil.copytree(run / stage, out / stage)
    words = [*common.split(), "--model.path", str(run / "base"), "--output_dir", str(out)]
    for key, file in NAMES.items():
        for part, suffix in ((key, ""), (f"{key}.test", "_test")):
            source = run / "data" / f"{file}{suffix}.jsonl"
            if change := changes.get(part):
                lines = (run / "data" / f"{file}{suffix}.jsonl").read_text("utf-8").splitlines()
                rows = change([json.loads(line) for line in lines])
                source = out / f"{file}{suffix}.jsonl"
                source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            words += [f"--{key}.{'test_path' if suffix else 'path'}", str(source)]
    for stage in stages:
        import_module(SCRIPTS[stage]).main([*words, *options.replace("{out}", str(out)).split()])
