"""What the evidence run trains: for three sets and three seeds, stages and which needs which.

    <out>/<set>/seed<n>/         sft, reward: the model and accuracy on all training pairs
    <out>/<set>/seed<n>-a/       reward on half of the pairs, ppo against it
    <out>/<set>/seed<n>-b/       reward on the other half: the judge of that ppo

The halves are by a hash of the first user turn, as is the held-out share (data.test_fraction), so
that reward model and judge share neither training pairs nor prompts, and held-out prompts are new
to both. The halves start from the same stage 1 as the whole.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.jobs import ROOT, Job

SEEDS = (0, 1, 2)
SETS = {
    "polite": ("polite_pref_train", "polite_pref_train", "polite_pref_train"),
    "hh_harmless": ("hh_harmless_train", "hh_harmless_train", "hh_harmless_train"),
    "oasst": ("oasst_sft_train", "oasst_pref_train", "prompts_oasst_lottery"),
}
"""Files of stages 1 to 3."""
WITH_PPO = ("polite", "hh_harmless")
SCRIPTS = {"sft": "stage1_sft.py", "reward": "stage2_rm.py", "ppo": "stage3_ppo.py"}


@dataclass(frozen=True, kw_only=True)
class StageJob(Job):
    """One stage of one run."""

    set: str
    run: str
    """Folder of the run inside the set's: seed0, seed0-a, seed0-b."""
    stage: str
    folder: Path
    """What it makes."""
    arguments: tuple[str, ...]
    """Of the stage's script."""


def jobs(data: Path, model: Path, out: Path, more: Sequence[str] = ()) -> list[StageJob]:
    """All jobs, `more` added to each command; what the longest chains need comes first."""
    names = [(s, f"seed{n}", "sft") for s in _long_first() for n in SEEDS]
    for half, stages in (("-a", ("reward", "ppo")), ("", ("reward",)), ("-b", ("reward",))):
        for stage in stages:
            for name in _long_first():
                if half and name not in WITH_PPO:
                    continue
                names += [(name, f"seed{n}{half}", stage) for n in SEEDS]
    return [_job(data, model, out, more, *name) for name in names]


def _long_first() -> list[str]:
    return ["hh_harmless", "polite", "oasst"]


def _job(
    data: Path, model: Path, out: Path, more: Sequence[str], name: str, run: str, stage: str
) -> StageJob:
    seed, _, half = run.removeprefix("seed").partition("-")
    folder = out / name / run
    sft, preference, prompts = SETS[name]
    pairs = out / "data" / f"{name}-{half}.jsonl" if half else data / f"{preference}.jsonl"
    own = {
        "config": ROOT / "configs" / f"{name}.yaml",
        "output_dir": folder,
        "seed": seed,
        "model.path": model,
        "data.sft.path": data / f"{sft}.jsonl",
        "data.preference.path": pairs,
        "data.prompts.path": data / f"{prompts}.jsonl",
    }
    parents: tuple[str, ...] = {"sft": (), "reward": ("sft",), "ppo": ("sft", "reward")}[stage]
    arguments = tuple(word for key, value in own.items() for word in (f"--{key}", str(value)))
    places = {"sft": out / name / f"seed{seed}" / "sft", "reward": folder / "reward"}
    needs = tuple(places[parent] / "stage.json" for parent in parents)
    arguments = (*arguments, *more)
    return StageJob(
        name=f"{name}.{run}.{stage}",
        command=(sys.executable, str(ROOT / SCRIPTS[stage]), *arguments),
        needs=needs,
        makes=folder / stage / "stage.json",
        set=name,
        run=run,
        stage=stage,
        folder=folder / stage,
        arguments=arguments,
    )


def first_user_turn(row: dict[str, Any]) -> str:
    """What decides the half of a row; for transcripts up to the first "Assistant:"."""
    if "prompt" in row:
        return str(row["prompt"]).split("\n\nAssistant:")[0]
    return f"{row['instruction']}\n{row.get('input') or ''}"


def half_of(turn: str) -> str:
    """`a` or `b`, by a bit of a hash that the held-out share does not use."""
    return "ab"[hashlib.sha256(f"half:{turn}".encode()).digest()[0] % 2]


def lay_out(data: Path, out: Path) -> None:
    """Write the halves' files, and let the halves find the stage 1 of their seed."""
    (out / "data").mkdir(parents=True, exist_ok=True)
    (out / "logs").mkdir(exist_ok=True)
    for name in WITH_PPO:
        lines = (data / f"{SETS[name][1]}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [(half_of(first_user_turn(json.loads(line))), line) for line in lines]
        for half in "ab":
            text = "".join(line + "\n" for side, line in rows if side == half)
            (out / "data" / f"{name}-{half}.jsonl").write_text(text, encoding="utf-8")
            for seed in SEEDS:
                folder = out / name / f"seed{seed}-{half}"
                folder.mkdir(parents=True, exist_ok=True)
                if not (folder / "sft").is_symlink():
                    (folder / "sft").symlink_to(Path("..") / f"seed{seed}" / "sft")
