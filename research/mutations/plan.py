"""What is planted: the mutations of all areas, and how one is put into a copy of the code.

Texts to replace are short, one line or a part of one, so that few need a change when the code does;
tests/unit/test_mutations.py says when one does.
"""

from dataclasses import dataclass
from pathlib import Path

from research.mutations import (
    data,
    evaluation,
    images,
    learned,
    models,
    passes,
    planner,
    ppo,
    presets,
    rl,
    roles,
    rollout,
    rows,
    runs,
    shapes,
    talking,
    training,
    twin,
)

ROOT = Path(__file__).resolve().parents[2]
AREAS = {
    "Formulas": rl,
    "PPO": ppo,
    "Losses and passes": passes,
    "Roles and runs of PPO": roles,
    "Models": models,
    "Rollout": rollout,
    "The model of rollouts": twin,
    "Rows": rows,
    "Images": images,
    "What a row says is learned": learned,
    "Data": data,
    "Presets of rows": presets,
    "Models of other shapes": shapes,
    "Stages 1 and 2": training,
    "What a run says, and the chat page": talking,
    "Evaluation": evaluation,
    "What a run tells": runs,
    "What is counted before a run": planner,
}
"""Heading of the report to the module with its bugs."""


@dataclass(frozen=True)
class Mutation:
    """One bug."""

    id: str
    """Area/name, for --only."""
    area: str
    file: str
    """Path below the root."""
    what: str
    """The bug in words."""
    old: str
    """Text that stands in `file` exactly once."""
    new: str
    """What is put in its place."""
    tests: tuple[str, ...]
    """Test files that run first."""


def plan() -> list[Mutation]:
    """All mutations, in the order of the report."""
    return [
        Mutation(
            f"{module.__name__.rpartition('.')[2]}/{name}", area, file, what, old, new, found(tests)
        )
        for area, module in AREAS.items()
        for file, (tests, bugs) in module.BUGS.items()
        for name, what, old, new in bugs
    ]


def found(patterns: tuple[str, ...], root: Path = ROOT) -> tuple[str, ...]:
    """The test files of glob patterns, below the root; ValueError for one that fits none."""
    files: list[str] = []
    for pattern in patterns:
        fitting = sorted(str(path.relative_to(root)) for path in root.glob(pattern))
        if not fitting:
            raise ValueError(f"there is no {pattern}")
        files += [file for file in fitting if file not in files]
    return tuple(files)


def planted(mutation: Mutation, text: str) -> str:
    """`text` of the mutation's file with the bug in it.

    ValueError unless the old text is found exactly once, and the result is another text that
    compiles.
    """
    times = text.count(mutation.old)
    if times != 1:
        raise ValueError(
            f"mutation {mutation.id}: {mutation.old!r} stands {times} times in {mutation.file}, "
            "not once. Write what the line says now, or drop the mutation if "
            "the line is gone."
        )
    changed = text.replace(mutation.old, mutation.new)
    if changed == text:
        raise ValueError(f"mutation {mutation.id}: old and new text are the same.")
    compile(changed, mutation.file, "exec")
    return changed


def check(mutations: list[Mutation], root: Path = ROOT) -> None:
    """ValueError for a mutation that cannot be planted, or two of one name."""
    names = [mutation.id for mutation in mutations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"mutations of one name: {', '.join(twice)}")
    for mutation in mutations:
        planted(mutation, (root / mutation.file).read_text(encoding="utf-8"))
