"""Put measurements into docs/performance.md: tables between its marks, and plots.

    python scripts/bench/tables.py [FOLDER]      default: docs/performance

Every *.json of FOLDER is a measurement of scripts/bench and says itself of what; another folder's
are copied to docs/performance first. Needs matplotlib (`pip install -e .[plot]`).
"""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from research.pages import fill
from scripts.bench.labels import Found, floor_of, given, label
from scripts.bench.steady import FORMS, SETTLED, fifths, settled

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTHING = "Not measured yet."


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else NOTHING


def number(value: float) -> str:
    """Three figures: 0.0312, 12.3, 1,230."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def gigabytes(value: float) -> str:
    """10^9 bytes."""
    return f"{value / 1e9:.1f}"


def machines(measured: list[Found]) -> str:
    """What they ran on, each machine once."""
    lines = dict.fromkeys(_machine(found["machine"]) for found in _flat(measured))
    return "\n".join(f"- {line}" for line in lines) or NOTHING


def _flat(measured: list[Found]) -> list[Found]:
    pairs = [found for found in measured if found["kind"] == "pair"]
    inner = [run for pair in pairs for side in pair["rounds"].values() for run in side]
    return [found for found in measured if found["kind"] != "pair"] + inner


def _machine(facts: Found) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    threads = f", {facts['threads']} thread" + "s" * (facts["threads"] > 1)
    return f"{facts['hardware']}{'' if 'NVIDIA' in facts['hardware'] else threads}; {versions}."


def steps(measured: list[Found]) -> str:
    """A line a measurement of whole steps."""
    rows = []
    for found in measured:
        floor, in_turn = floor_of(found), floor_of(found, "in_turn")
        rows.append(
            [
                label(found),
                number(found["seconds"]),
                f"**{number(found['samples_per_second'])}**",
                number(found["tokens_per_second"]),
                f"{found['utilisation']:.1%}",
                f"{number(floor)} / {number(in_turn)}",
                f"{found['seconds'] / floor:.1f} / {found['seconds'] / in_turn:.1f}",
                gigabytes(found["peak_bytes"]["step"]),
                number(found["first_update_seconds"]) if found["first_update_seconds"] else "",
            ]
        )
    head = "workload, s a step, samples/s, tokens/s, utilisation, floor (s), times the floor"
    return table([*head.split(", "), "peak GB", "start to first update (s)"], rows)


def phases(measured: list[Found]) -> str:
    """A table a measurement, a line a phase."""
    parts = []
    for found in measured:
        rows = []
        for name, seconds in found["phases"].items():
            floor = found["floors"].get(name)
            peak = found["peak_bytes"].get(name)
            cells = ["", "", ""]
            if floor and floor["overlapped"]:
                cells = [number(floor[kind]) for kind in ("overlapped", "in_turn")]
                cells.append(f"{seconds / floor['overlapped']:.1f}")
            rows.append([name, number(seconds), *cells, gigabytes(peak) if peak else ""])
        head = ["phase", "s", "floor", "floor in turn", "times the floor", "peak GB"]
        parts.append(f"{label(found)}:\n\n{table(head, rows)}")
    return "\n\n".join(parts) or NOTHING


def rollouts(measured: list[Found]) -> str:
    """A table a model: a line a length and batch, a column an engine."""
    parts = []
    for found in measured:
        engines = list(dict.fromkeys(c["engine"] for c in found["cells"]))
        lines: dict[tuple[Any, ...], dict[str, str]] = {}
        for c in found["cells"]:
            w = c["workload"]
            key = (f"{w['prompt']} -> {w['response']}", c["lengths"], w["batch"])
            lines.setdefault(key, {})[c["engine"]] = _cell(c)
        rows = [
            [*map(str, key), *(cells.get(engine, "") for engine in engines)]
            for key, cells in lines.items()
        ]
        heads = [f"{e}: tokens/s (times the floor; first call s)" for e in engines]
        name = ", ".join([found["model"], *given(found)])
        parts.append(f"{name}:\n\n{table(['tokens', 'lengths', 'batch', *heads], rows)}")
    return "\n\n".join(parts) or NOTHING


def _cell(c: Found) -> str:
    if "failed" in c:
        return "out of memory"
    first = number(c["first_call_seconds"])
    return f"**{number(c['tokens_per_second'])}** ({c['times_floor']:.1f}; {first})"


def logprobs(measured: list[Found]) -> str:
    """A table a measurement: a line a way from hidden states to log-probs and back."""
    parts = []
    for found in measured:
        rows = []
        for name, c in found["cells"].items():
            times = ("forward_kernel_seconds", "both_kernel_seconds", "both_seconds")
            milliseconds = [number(1e3 * c[time]) if time in c else "" for time in times]
            memory = f"{c['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in c else ""
            rows.append([name, *milliseconds, memory])
        head = "way, kernels forward (ms), forward and back (ms), waited for (ms), peak MB"
        what = f"{found['rows']:,} tokens of {found['width']}, vocabulary {found['vocabulary']:,}"
        on = found["machine"]["hardware"]
        parts.append(f"{what}, {on}:\n\n{table(head.split(', '), rows)}")
    return "\n\n".join(parts) or NOTHING


def pairs(measured: list[Found]) -> str:
    """Ours against the peer."""
    rows = []
    for found in measured:
        ours, peer = (found["rounds"][side] for side in ("ours", "peer"))
        taken = f"{ours[0]['optimizer_steps']} / {peer[0]['optimizer_steps']}"
        memory = [max(r["peak_bytes"]["step"] for r in side) for side in (ours, peer)]
        rows.append(
            [
                f"{label(ours[0])}, against {peer[0]['peer']}",
                number(found["ours"]),
                number(found["peer"]),
                f"**{found['ratio']:.2f}**",
                " ".join(f"{ratio:.2f}" for ratio in found["ratio_by_round"]),
                taken,
                " / ".join(gigabytes(value) for value in memory),
            ]
        )
    head = "pair, ours samples/s, peer samples/s, ratio, ratio by round, optimizer steps, peak GB"
    return table(head.split(", "), rows)


def steady(measured: list[Found]) -> str:
    """A line a long run: the numbers that are to stay as they were."""
    rows = []
    for found in measured:
        updates = found["updates"]
        first, last = fifths(updates["seconds"])
        kept = {name: settled(numbers) for name, numbers in updates.items()}
        memory = [name for name in ("resident", "allocated", "reserved", "peak") if name in kept]
        graphs = [sum(kept[name][end] for name in FORMS) for end in (0, 1)]
        rows.append(
            [
                label(found),
                str(len(updates["seconds"])),
                f"{number(first)} / {number(last)}",
                f"**{last / first:.2f}**",
                *(" / ".join(f"{kept[name][end] / 1e9:.3f}" for name in memory) for end in (0, 1)),
                f"{graphs[0]} / {graphs[1]}",
            ]
        )
    head = ["run", "updates", "s an update, first / last fifth", "ratio"]
    what = "GB (resident; on a GPU also allocated / reserved / peak)"
    return table(
        [*head, f"{what} at update {SETTLED}", "at the end", "graphs then / at the end"], rows
    )


def render(measured: list[Found], plots: list[str]) -> dict[str, str]:
    """The text of each marked place of the page."""
    kinds = {kind: [f for f in measured if f["kind"] == kind] for kind in KINDS}
    standard = [f for f in kinds["ppo_step"] if f["standard"]]
    others = [f for f in kinds["ppo_step"] if not f["standard"]]
    others.sort(key=lambda f: [f["workload"][what] for what in ("name", "response", "batch")])
    return {
        "machines": machines(measured),
        "steps": steps(standard),
        "phases": phases(standard),
        "costs": steps(others),
        "rollouts": rollouts(kinds["rollout"]),
        "logprobs": logprobs(kinds["logprobs"]),
        "pairs": pairs(kinds["pair"]),
        "steady": steady(kinds["steady"]),
        "plots": "\n\n".join(f"![{text}]({text})" for text in plots) or NOTHING,
    }


KINDS = ("ppo_step", "rollout", "logprobs", "pair", "steady")


def load(folder: Path) -> list[Found]:
    """Measurements by file name; UserError for a file that is none.

    Rollouts of one model and machine are one measurement, whatever files hold the engines.
    """
    measured: list[Found] = []
    for file in sorted(folder.glob("*.json")):
        found = _read(file)
        same = ("kind", "model", "options", "machine")
        others = [f for f in measured if all(f.get(key) == found.get(key) for key in same)]
        if found["kind"] == "rollout" and others:
            others[0]["cells"] += found["cells"]
        elif found["kind"] in KINDS:
            measured.append(found)
    return measured


def _read(file: Path) -> Found:
    """One measurement; UserError for what is none, or lacks what its table shows."""
    why = ""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("kind") in (*KINDS, "peer"):
            render([found], [])
            return found
    except json.JSONDecodeError as error:
        why = f" (line {error.lineno}: {error.msg})"
    except KeyError as error:
        why = f" (it has no {error})"
    raise UserError(f"{file}: not a measurement of scripts/bench{why}; take it out of there.")


def main(argv: list[str]) -> None:
    """Command line."""
    from scripts.bench.plots import draw

    kept = DOCS / "performance"
    source = Path(argv[0]) if argv else kept
    if len(argv) > 1 or not source.is_dir():
        raise UserError(f"usage: python scripts/bench/tables.py [FOLDER]; there is no {source}.")
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed: pip install -e .[plot]")
    load(source)  # before anything is copied
    kept.mkdir(exist_ok=True)
    if source.resolve() != kept.resolve():
        for file in source.glob("*.json"):
            shutil.copyfile(file, kept / file.name)
    measured = load(kept)
    page = DOCS / "performance.md"
    plots = [f"performance/{name}" for name in draw(measured, kept)]
    filled = fill(page.read_text(encoding="utf-8"), render(measured, plots), "docs/performance.md")
    page.write_text(filled, encoding="utf-8")
    print(f"wrote {page} and {len(plots)} plots from {len(measured)} measurements")


if __name__ == "__main__":
    guarded(main)
