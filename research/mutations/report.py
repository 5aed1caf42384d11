"""docs/mutations.md."""

from pathlib import Path

from research.mutations.plan import AREAS, Mutation
from research.mutations.sessions import Outcome

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mutations.md"
WANTED = 0.95
"""Share of bugs that must be caught."""
HEAD = """# Planted bugs

<!-- Written by research/mutations/run.py: run it again, do not edit. -->

`python research/mutations/run.py` plants each of these bugs alone into a copy of the code, runs the
tests nearest to it, then all unit and parity tests, and stops at the first that fails.
**{caught} of {planted} are caught.** At least 95% must be.{left} The tests that caught
something all pass on the code without a bug. Seconds are those up to the failure, on two cores.
"""


def write(mutations: list[Mutation], outcomes: dict[str, Outcome]) -> None:
    """The page, from all mutations and their outcomes."""
    PAGE.write_text(render(mutations, outcomes), encoding="utf-8")


def render(mutations: list[Mutation], outcomes: dict[str, Outcome]) -> str:
    """The page as Markdown, of those mutations whose outcome is known."""
    planned = len(mutations)
    mutations = [m for m in mutations if m.id in outcomes]
    left = planned - len(mutations)
    told = f"\n{left} of the {planned} planned were not run for this page." if left else ""
    survivors = [m for m in mutations if outcomes[m.id].failed is None]
    parts = [HEAD.format(caught=len(mutations) - len(survivors), planted=len(mutations), left=told)]
    if survivors:
        parts.append("## Not caught\n")
        parts += [f"- {m.what} (`{m.id}`, `{m.file}`): {_change(m)}" for m in survivors]
        parts.append("")
    for area in sorted({m.area for m in mutations}, key=list(AREAS).index):
        parts += [f"## {area}\n", "| bug | where | caught by | s |", "|---|---|---|---|"]
        for m in (m for m in mutations if m.area == area):
            outcome = outcomes[m.id]
            by = f"`{_short(outcome.failed)}`" if outcome.failed else "**nothing**"
            parts.append(f"| {m.what} | `{_inside(m.file)}` | {by} | {outcome.seconds:.0f} |")
        parts.append("")
    return "\n".join(parts).rstrip("\n") + "\n"


def _inside(file: str) -> str:
    return file.removeprefix("cores/")


def _short(test: str) -> str:
    """A test's name without its folder, its bars written so that they do not end a cell."""
    return test.removeprefix("tests/").replace("|", "\\|")


def _change(m: Mutation) -> str:
    old, new = (" ".join(text.split()) or "(nothing)" for text in (m.old, m.new))
    return f"`{old}` becomes `{new}`"
