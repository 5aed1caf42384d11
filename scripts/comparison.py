"""Lines, files and dependencies of this project and of others' packages, as a table.

    pip download --no-deps -d peers trl==1.16.0 openrlhf==0.11.2 verl==0.9.1 llamafactory==0.9.5
    python scripts/comparison.py peers

Of each wheel: Python files and their lines, blank ones and comments included, and the requirements
that it has without extras. Of ours `cores` and the stages' scripts, with what installing the
requirements brings: packages and MB, as they are in this environment.
"""

import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| | Python files | lines | longest file | requirements | with theirs | installed MB |"
NAME = re.compile(r"[\w.-]+")


def main(argv: list[str]) -> None:
    """Print the table for the wheels of the folder named."""
    wheels = sorted(Path(argv[0]).rglob("*.whl")) if len(argv) == 1 else []
    if not wheels:
        raise UserError(
            "comparison.py: give a folder of wheels, as `pip download --no-deps -d FOLDER NAME` "
            "fills it."
        )
    print(f"{HEAD}\n|{'---|' * HEAD[1:].count('|')}")
    ours = [*ROOT.glob("stage*.py"), *(ROOT / "cores").rglob("*.py")]
    wanted = list(required(metadata.requires("tristage") or []))
    brought = closure(wanted)
    size = sum(map(installed, brought)) / 1e6
    print(row("tristage", [p.read_text("utf-8") for p in ours], len(wanted), len(brought), size))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as files:
            names = files.namelist()
            texts = [files.read(n).decode(errors="replace") for n in names if n.endswith(".py")]
            (told,) = [n for n in names if n.endswith(".dist-info/METADATA")]
            lines = files.read(told).decode(errors="replace").splitlines()
        needs = [line.split(":", 1)[1] for line in lines if line.startswith("Requires-Dist:")]
        label = " ".join(wheel.name.split("-")[:2])
        print(row(label, texts, len(list(required(needs)))))


def row(
    name: str, texts: list[str], direct: int, packages: int | None = None, mb: float | None = None
) -> str:
    """One line of the table; - for what is not known."""
    lengths = [text.count("\n") for text in texts]
    cells = [name, len(texts), sum(lengths), max(lengths), direct, packages, mb and round(mb)]
    shown = ["-" if c is None else f"{c:,}" if isinstance(c, int) else c for c in cells]
    return f"| {' | '.join(map(str, shown))} |"


def required(lines: Iterable[str]) -> Iterator[str]:
    """Names of the requirements that hold without an extra."""
    for line in lines:
        found = NAME.match(line.strip())
        if found and "extra ==" not in line.replace("'", '"'):
            yield found[0].lower().replace("_", "-")


def closure(names: Iterable[str]) -> set[str]:
    """The installed packages that they bring, themselves included."""
    left, found = set(names), set()
    while left:
        name = left.pop()
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform
        found.add(name)
        left |= set(required(needs)) - found
    return found


def installed(name: str) -> int:
    """Bytes of the package's files."""
    files = metadata.files(name) or []
    places = (Path(str(file.locate())) for file in files)
    return sum(place.stat().st_size for place in places if place.is_file())


if __name__ == "__main__":
    guarded(main)
