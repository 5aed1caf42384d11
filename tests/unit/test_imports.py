"""Who imports whom: the table of docs/architecture.md holds, and no module imports itself in the
end. Imports within functions and for types alone count like all others."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "cores").rglob("*.py"))
}
"""Every module of `cores` by its name."""
SHARED = {"errors", "draws", "files"}
"""What every folder may import."""


def imported(source: str) -> set[str]:
    """The modules of `cores` that a source text imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in MODULES else str(node.module))
    return {name for name in found if name.split(".")[0] == "cores"}


@cache
def imports(name: str) -> set[str]:
    """Those of a module."""
    return imported(MODULES[name].read_text(encoding="utf-8"))


def table(page: str) -> dict[str, set[str]]:
    """Each folder of the table and the folders that it may import."""
    rows = re.findall(r"^\| `cores/(\w+)` \|.*\| ([^|]*) \|$", page, re.MULTILINE)
    return {
        folder: set(re.findall(r"\w+", cell)) & {name for name, _ in rows} for folder, cell in rows
    }


ALLOWED = table((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_imports_are_read() -> None:
    """Those of names, of modules, in functions and for types; of others none."""
    source = """
import torch
import cores.draws
from cores import errors
from cores.config import Config
from cores.models.lora import add_lora as adapted
if TYPE_CHECKING:
    from cores.rollout.graph import engine
def f():
    from cores.rl import whiten
"""
    assert imported(source) == {
        "cores.draws", "cores.errors", "cores.config", "cores.models.lora",
        "cores.rollout.graph.engine", "cores.rl",
    }  # fmt: skip


def test_the_table_is_read() -> None:
    """Its last column, of folders that have a row."""
    page = "| folder | | may |\n|---|---|---|\n| `cores/a` | b | torch |\n| `cores/b` | | a, c |\n"
    assert table(page) == {"a": set(), "b": {"a"}}


def test_every_folder_has_a_row_below_what_it_imports() -> None:
    """So nothing flows back: the rows are in an order in which the folders could be written."""
    folders = {name.split(".")[1] for name in MODULES if MODULES[name].parent != ROOT / "cores"}
    assert set(ALLOWED) == folders
    above: set[str] = set()
    for folder, allowed in ALLOWED.items():
        assert allowed <= above, f"cores/{folder} is above {sorted(allowed - above)}"
        above.add(folder)


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_what_the_table_allows(folder: str) -> None:
    allowed = ALLOWED[folder] | SHARED | {folder}
    beyond = [
        f"{name} imports {other}"
        for name in MODULES
        if name.split(".")[1:2] == [folder]
        for other in sorted(imports(name))
        if other.split(".")[1] not in allowed
    ]
    assert not beyond


def test_shared_modules_import_no_folder() -> None:
    for name in SHARED:
        assert {other.split(".")[1] for other in imports(f"cores.{name}")} <= SHARED


def test_no_module_imports_itself_in_the_end() -> None:
    """CycleError names the circle."""
    graph = {name: imports(name) for name in MODULES}
    assert all(other in MODULES for others in graph.values() for other in others)
    tuple(TopologicalSorter(graph).static_order())


def test_stage_3_imports_no_trainer_and_no_adapters() -> None:
    """Both cost seconds at every start, and are not needed without adapters."""
    tree = ast.parse((ROOT / "stage3_ppo.py").read_text(encoding="utf-8"))
    lines = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    heavy = "{'peft', 'bitsandbytes', 'trl', 'deepspeed', 'vllm', 'transformers.trainer'}"
    lines += ["import sys", f"assert 'torch' in sys.modules and not {heavy} & sys.modules.keys()"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True)
