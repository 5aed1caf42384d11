"""<output_dir>/report.html: one file that asks the network for nothing. Texts of models are data in
it: they stand in a block of JSON that no browser runs, and reach the page as text alone."""

import base64
import hashlib
import json
import math
import re
import secrets
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from cores.files import read_json
from cores.report.curves import curves, histogram, pairs, rollouts
from cores.report.doctor import Record, Row, examine, read_run
from cores.report.rules import RULES, splits

NAME = "report.html"
TITLES = {"sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "PPO"}


def write_report(root: Path) -> Path:
    """Make the report of the run in an output_dir from what lies there, in one step; a stage that
    runs and a command may do so at once."""
    text, path = page(payload(root)), root / NAME
    partial = root / f".{NAME}.{secrets.token_hex(4)}.partial"
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def payload(root: Path) -> dict[str, Any]:
    """What the page shows. Raises as `read_run`."""
    records = read_run(root)
    ppo = next((record for record in records if record.name == "ppo"), None)
    shown = all(r.config.get("logging", {}).get("samples", True) for r in records)
    held_out = ppo.lines("held_out_samples.jsonl") if ppo and shown else []
    return {
        "name": root.resolve().name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "findings": [asdict(finding) for finding in examine(RULES, records)],
        "stages": [stage(record) for record in records],
        "private": not shown,
        "pairs": pairs(held_out),
        "replies": len(held_out),
        "rollouts": rollouts(ppo.lines("samples.jsonl")) if ppo and shown else [],
        "scores": histogram(held_out),
        "frontier": frontier(ppo) if ppo else [],
        "evaluation": evaluation(root / "evaluation.json"),
    }  # fmt: skip


def evaluation(path: Path) -> Row:
    """What scripts/evaluate.py found, without single replies; empty where it has not run."""
    if not path.exists():
        return {}
    found = read_json(path, "Run scripts/evaluate.py again.")
    policies = found.get("policies") or {}
    for name, figures in policies.items():
        policies[name] = {key: value for key, value in figures.items() if key != "rows"}
    return {key: value for key, value in found.items() if key not in ("samples", "version")}


def stage(record: Record) -> dict[str, Any]:
    """One stage's box, curves and details."""
    told, rows = record.told, record.rows
    last = rows[-1] if rows else {}
    seconds = told.get("seconds", last.get("seconds", 0))
    state = "finished" if record.finished else "under way"
    if not record.finished and told.get("stopped"):
        state = f"stopped: {told['stopped']}"
    return {
        "name": record.name,
        "title": TITLES[record.name],
        "state": state,
        "step": last.get("step"),
        "seconds": seconds,
        "processes": told.get("processes", 1),
        "created": told.get("created"),
        "data": [
            [name, split.get("used", 0), split.get("read", 0), split.get("format")]
            for name, split in splits(record.data)
        ],
        "figures": figures(record),
        "command": told.get("command") or told.get("resume"),
        "versions": told.get("versions") or {},
        "config": record.config,
        "curves": curves(record),
    }


def figures(record: Record) -> list[list[str]]:
    """What the stage came to, by name, for its box."""
    told, found = record.metrics, []
    before, after = told.get("test_loss_before"), told.get("test_loss")
    if after is not None:
        shown = f"{before:.3f} → " if before is not None else ""
        found.append(["held-out loss", f"{shown}{after:.3f} nats a token"])
    if (right := told.get("accuracy")) is not None:
        z2_n = 1.96**2 / max(1, told.get("pairs", 1))  # Wilson's interval: not 0 wide at 1.0
        centre, half = right + z2_n / 2, (z2_n * (right * (1 - right) + z2_n / 4)) ** 0.5
        low, high = ((centre + sign * half) / (1 + z2_n) for sign in (-1, 1))
        found.append(["held-out accuracy", f"{right:.3f} [{low:.3f}, {high:.3f}]"])
        found.append(["the longer reply wins", f"{told.get('accuracy_longer', 0):.3f}"])
    if told.get("correlation") is not None:
        found.append(["held-out correlation", f"{told['correlation']:.3f}"])
    if isinstance(then := told.get("before"), dict) and isinstance(now := told.get("after"), dict):
        for name, form in (("score", "+.2f"), ("kl", ".2f")):
            half = now.get(f"{name}_interval", math.inf)
            was = format(then.get(name, 0), form)
            found.append([f"held-out {name}", f"{was} → {now.get(name, 0):{form}} ± {half:.2f}"])
        was = then.get("length", 0)
        found.append(["reply", f"{was:.0f} → {now.get('length', 0):.0f} tokens"])
    return found


def frontier(ppo: Record) -> list[Row]:
    """Held-out score and KL, with half-widths, by update: before, in between, after."""
    before, after = ppo.metrics.get("before"), ppo.metrics.get("after")
    last = ppo.metrics.get("updates", 0)
    found = [{"update": 0, **before}] if before else []
    found += ppo.lines("evaluations.jsonl")
    return found + ([{"update": last, **after}] if after else [])


def page(told: dict[str, Any]) -> str:
    """The page around its data."""
    here = files("cores.report")
    read = {name: (here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")}
    plots, look, licence = (
        (here / "uplot" / name).read_text(encoding="utf-8")
        for name in ("uPlot.iife.min.js", "uPlot.min.css", "LICENSE")
    )
    script = f"/*\n{licence}*/\n{plots}\n{read['page.js']}"
    style = f"{look}\n{read['page.css']}"
    # Nothing in the page can end its block of data early, and only these two texts are run.
    data = json.dumps(told, ensure_ascii=False).replace("<", "\\u003c")
    parts = {
        "data": data, "script": script, "style": style,
        "allowed": f"script-src {digest(script)}; style-src {digest(style)}",
    }  # fmt: skip
    template = (here / "page.html").read_text(encoding="utf-8")
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def digest(text: str) -> str:
    """A source of a content security policy: this text and no other."""
    found = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest())
    return f"'sha256-{found.decode('ascii')}'"
