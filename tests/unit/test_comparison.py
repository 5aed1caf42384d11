"""Counting what others' packages hold."""

import zipfile
from pathlib import Path

import pytest

from cores.errors import UserError
from scripts.comparison import closure, main, required


def test_a_wheel_s_lines_and_requirements(tmp_path: Path, capsys, monkeypatch) -> None:
    """Python alone is counted, and what extras ask for is no requirement."""
    needs = "".join(
        f"Requires-Dist: {line}\n"
        for line in ("torch>=2", "Some_Thing", "pytest; extra == 'dev'", 'ray ; extra == "x"')
    )
    with zipfile.ZipFile(tmp_path / "peer-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("peer/a.py", "1\n2\n3\n")
        wheel.writestr("peer/b.py", "1\n")
        wheel.writestr("peer/c.json", "{}\n" * 9)
        wheel.writestr("peer-1.2.dist-info/METADATA", f"Name: peer\n{needs}\n")
    monkeypatch.setattr("scripts.comparison.installed", lambda name: 2_000_000)  # it reads files
    main([str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "| peer 1.2 | 2 | 4 | 3 | 2 | - | - |"
    assert printed[-2].startswith("| tristage | ")
    assert list(required(["a-b>1", "c ; extra == 'x'", "D_e"])) == ["a-b", "d-e"]


def test_what_a_package_brings() -> None:
    assert {"transformers", "tokenizers", "numpy"} <= closure(["transformers"])
    with pytest.raises(UserError, match="give a folder of wheels"):
        main([])
