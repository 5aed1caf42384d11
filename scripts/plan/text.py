"""A plan in words: tables of memory and seconds, other ways, the launch file, the commands."""

import re

from scripts.plan.layouts import FILES, Plan
from scripts.plan.times import Card

SCRIPTS = {"sft": "stage1_sft.py", "reward": "stage2_rm.py", "ppo": "stage3_ppo.py"}


def gb(size: float) -> str:
    """10^9 bytes."""
    return f"{size / 1e9:.1f}" if size < 1e11 else f"{size / 1e9:.0f}"


def table(rows: list[list[str]]) -> str:
    """Columns as wide as they need to be, the first on the left."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, wide)))  # noqa: B905
        for row in rows
    )
    return "\n".join(f"  {line}".rstrip() for line in lines)


def memory(chosen: Plan) -> str:
    """GB a GPU by role and what it is, a column a phase."""
    phases = chosen.phases
    keys = dict.fromkeys((h.role, h.what) for held in phases.values() for h in held)
    rows = [["GB a GPU", *phases]]
    for role, what in keys:
        cells = [
            sum(h.bytes for h in held if (h.role, h.what) == (role, what))
            for held in phases.values()
        ]
        if max(cells) >= 5e6:
            rows.append([f"{role}: {what}", *(gb(cell) if cell else "" for cell in cells)])
    sums = [sum(h.bytes for h in held) for held in phases.values()]
    return table([*rows, ["together", *map(gb, sums)]])


def alternatives(found: list[Plan], chosen: Plan | None) -> str:
    """The other ways, a line each."""
    rows = [["way", "options", "GB a GPU", "s a step", ""]]
    for form in found:
        mark = "<-" if form is chosen else "" if form.fits else "does not fit"
        rows.append(
            [form.name, form.as_options() or "as configured", gb(form.peak[1]),
             f"{form.total:.3g}", mark]
        )  # fmt: skip
    return table(rows)


def launch_file(chosen: Plan, nodes: int) -> str:
    """The accelerate file of the plan: that of configs/accelerate for so many GPUs and hosts."""
    text = (FILES / chosen.file).read_text(encoding="utf-8")
    world = chosen.case.layout.world
    text = re.sub(r"num_processes: \d+.*", f"num_processes: {world}  # GPUs of all hosts", text)
    if nodes == 1:
        return text
    text = re.sub(r"num_machines: \d+", f"num_machines: {nodes}", text)
    port = "main_process_port: 29500  # free on host 0\nmain_process_ip: HOST0  # its address"
    text = re.sub(r"main_process_port: 0.*", port, text)
    text = re.sub(r"machine_rank: 0", "machine_rank: 0  # 1, 2, .. on the other hosts", text)
    if "deepspeed_config:" in text:
        text = text.rstrip("\n") + "\n  deepspeed_multinode_launcher: standard\n"
    return text


def report(
    stage: str, found: list[Plan], chosen: Plan | None, card: Card, micro: int, words: str
) -> str:
    """All that is said of a stage; `words`: what lengths were taken."""
    given, shown = found[0], chosen or found[0]
    layout = shown.case.layout
    how = f"{layout.world} x {layout.card / 1e9:g} GB, rates of {card.name}"
    phase, size = shown.peak
    lines = [f"{stage} ({how}): {shown.name}, {shown.as_options() or 'as configured'}"]
    if chosen is not given:
        name, most = given.peak
        lines.append(f"as configured it would need {gb(most)} GB ({name}), and does not fit")
    lines.append(f"peak {gb(size)} GB a GPU, in {phase}; {shown.total:.3g} s a step; {words}")
    parts = ", ".join(f"{k} {v:.3g}" for k, v in shown.seconds.items() if v >= 5e-4)
    lines += [memory(shown), f"seconds: {parts}"]
    if chosen is not None:
        lines.append(f"largest micro-batch that fits: --{stage}.microbatch_size {micro}")
    else:
        lines.append("nothing that is known of fits; the least memory of each way:")
    return "\n".join([*lines, alternatives(found, chosen)])
