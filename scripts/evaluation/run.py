"""An evaluation from the command line's words to the table and the file."""

import os
from dataclasses import dataclass
from pathlib import Path

from cores.config import Config
from cores.errors import UserError
from cores.files import write_json
from cores.rewards.load import MODEL, RewardFunction, load_functions
from cores.runtime.launch import launch
from scripts.evaluation.gates import gate_of
from scripts.evaluation.judges import Judge, is_function, judge_of
from scripts.evaluation.policies import judge_policies
from scripts.evaluation.reward import judge_reward
from scripts.evaluation.runs import Judged, Row, asked, finished
from scripts.evaluation.show import table

VERSION = 1
"""Of the form of evaluation.json."""
FILE = "evaluation.json"
Functions = dict[str, RewardFunction]


@dataclass(frozen=True)
class Wanted:
    """The options of scripts/evaluate.py."""

    prompts: str | None
    pairs: str | None
    json: Path | None
    judge: str | None
    judge_model: str | None
    gate: str | None
    limit: int
    best_of: int


def judge(config: Config, wanted: Wanted) -> None:
    """Judge, print the table, write the file. UserError if nothing is there to judge."""
    here = launch(config)
    judged = finished(config, here, wanted.limit)
    root = Path(config.output_dir).expanduser()
    out = root / FILE if wanted.json is None else wanted.json
    if wanted.json is None:
        root.mkdir(parents=True, exist_ok=True)
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UserError(f"--json {out}: there is no folder {folder}; make it first.")
    if out.is_dir() or not os.access(folder, os.W_OK):
        why = "is a folder" if out.is_dir() else f"nothing can be written in {folder}"
        raise UserError(f"--json {out}: {why}; name a file that can be written.")
    judged.found |= {
        "version": VERSION,
        "stages": {k: str(p.folder) for k, p in judged.stages.items()},
    }
    told = _asked(judged, wanted)  # what may be wrong in it is said before anything is judged
    gate = gate_of(wanted.gate)
    judge_reward(judged, wanted.pairs)
    if told is not None:
        judge_policies(judged, *told, gate, wanted.best_of)
    if not {"accuracy", "reward_model", "benchmark", "language", "policies"} & judged.found.keys():
        reasons = "; ".join(f"{k}: {v}" for k, v in judged.found["left_out"].items())
        raise UserError(f"{config.output_dir}: nothing of it can be judged ({reasons}).")
    if not config.logging.samples and wanted.json is None and judged.found.pop("samples", None):
        judged.leave_out("samples", "logging.samples is false; --json OUT has them")
    write_json(out, judged.found)
    here.say("\n" + table(judged.found))
    shows = "" if wanted.json is not None else f"; python scripts/report.py {root} shows it"
    here.say(f"\nwrote {out}{shows}")


def _asked(judged: Judged, wanted: Wanted) -> tuple[list[Row], Functions, Judge | None] | None:
    """The prompts, the functions that are needed, and the second judge; None without stage 1."""
    if "sft" not in judged.stages:
        if wanted.prompts or wanted.judge or wanted.gate:
            raise UserError(
                "--prompts, --judge, --gate: stage 1 is not finished, so there is nothing that "
                "answers; run stage1_sft.py first."
            )
        return None
    config, section = judged.config, judged.config.data.prompts
    rows: list[Row] = []
    if wanted.prompts or section.path or section.sources:
        rows = asked(judged, wanted.prompts)
        if not rows:
            judged.leave_out("policies", "no prompts are held out (data.test_fraction is 0)")
    else:
        judged.leave_out("policies", "data.prompts.path is not set, nor --prompts given")
    if wanted.judge is not None and not rows:
        raise UserError(
            f"--judge {wanted.judge}: there are no prompts whose replies it could judge; give them "
            "by --prompts, or set data.prompts.path."
        )
    sources = {source: 1.0 for source in config.ppo.rewards if source != MODEL}
    if is_function(wanted.judge):
        sources[str(wanted.judge)] = 1.0
    try:
        functions = load_functions(sources, config.ppo.reward_timeout).functions if rows else {}
    except UserError as error:
        ours = wanted.judge is not None and wanted.judge in str(error)
        raise UserError(
            str(error).replace("ppo.rewards", "--judge" if ours else "ppo.rewards")
        ) from None
    second = None
    if wanted.judge is not None:
        second = judge_of(judged, wanted.judge, wanted.judge_model, functions, rows)
    return rows, functions, second
