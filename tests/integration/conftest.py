"""Helpers of this folder and of tests/unit, and one set of tiny models and files a session."""

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "unit"):  # importlib mode puts no test folder on the path
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import _helpers  # noqa: E402
import _recipes  # noqa: E402
import _tiny  # noqa: E402

from cores.runtime.cli import guarded  # noqa: E402
from cores.runtime.stop import STOP  # noqa: E402
from scripts.recipes.bases import make  # noqa: E402


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random GPT-2 whose pad is its eos."""
    return _tiny.make_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama with a chat template and a token a word."""
    return _tiny.make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Local files with the hub sets' columns."""
    return _tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny base of a recipe, made when it is first asked for."""
    home = tmp_path_factory.mktemp("bases")

    def base(recipe: str) -> Path:
        name = _recipes.BASE[recipe]
        if name in _recipes.WITH_IMAGES:
            pytest.importorskip("PIL", reason="the extra images is not installed")
        if not (home / name).exists():
            make(name, home / name)
        return home / name

    return base


def _finish(out: Path, llama: Path, files: dict[str, Path], stages: list[str]) -> Path:
    with contextlib.redirect_stdout(io.StringIO()):
        for stage in stages:
            _helpers.in_process(stage, _helpers.good(llama, files, out))
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, llama: Path, files: dict) -> Path:
    """An output_dir with sft and reward of the tiny Llama."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return _finish(out, llama, files, ["sft", "reward"])


@pytest.fixture
def parents(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished stages, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a stage in this process as its script would; gives (exit status, stdout, stderr)."""

    def leave(board: object, status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("cores.runtime.cli._leave", leave)  # it ends the process
    monkeypatch.setattr("cores.runtime.cli.free_children", lambda: None)
    monkeypatch.setattr(STOP, "watch", lambda launched: None)

    def caller(stage: str, words: list[Any]) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [_helpers.SCRIPTS[stage], *map(str, words)])
        status: Any = 0
        try:
            guarded(lambda argv: _helpers.in_process(stage, argv))
        except SystemExit as leaving:
            status = leaving.code
        return status, *capfd.readouterr()

    monkeypatch.chdir(_helpers.ROOT)
    screens = sys.stdout, sys.stderr
    yield caller
    sys.stdout, sys.stderr = screens


@pytest.fixture
def refused(call: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Run what must fail soon and leave `out` as it was; gives the message on one line."""

    def refuse(stage: str, words: list[Any], out: Path) -> str:
        before, existed, start = _helpers.tree(out), out.exists(), time.monotonic()
        status, printed, err = call(stage, words)
        assert time.monotonic() - start < 30
        assert status == 1
        assert "Traceback" not in printed
        assert _helpers.tree(out) == before
        assert out.exists() == existed
        assert not list(out.glob(".*"))
        return _helpers.one_paragraph(err)

    return refuse
