"""The command line before any work: help, the printed configuration, the files we ship."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from _helpers import GPT2, ROOT, SCRIPTS, run

from cores.config import parse_config, plain

HEAVY = ["torch", "transformers", "datasets", "trl", "peft", "accelerate", "numpy"]


@pytest.mark.parametrize("stage", list(SCRIPTS))
def test_help_is_quick(stage: str) -> None:
    """Under two seconds (the best of three: another test may hold the processor)."""
    taken = []
    for _ in range(3):
        start = time.monotonic()
        done = run(stage, ["--help"])
        taken.append(time.monotonic() - start)
        if taken[-1] < 2:
            break
    assert min(taken) < 2
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {SCRIPTS[stage]}")
    said = " ".join(done.stdout.split())
    assert "--ppo.kl_coef KL_COEF Price of one nat of KL from the reference" in said
    assert "(type: a number, default: 0.05)" in said


@pytest.mark.parametrize("stage", list(SCRIPTS))
@pytest.mark.parametrize("words", [["--help"], ["--sedd", "1"], ["--print_config"]])
def test_nothing_heavy_before_the_arguments_are_right(stage: str, words: list[str]) -> None:
    """Help, a wrong key and --print_config end without torch in the process."""
    code = (
        "import runpy, sys, io, contextlib\n"
        "import cores.runtime.cli as cli\n"
        "cli._leave = lambda board, status: sys.exit(status)\n"
        f"sys.argv = {[SCRIPTS[stage], *words]!r}\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    runpy.run_path({SCRIPTS[stage]!r}, run_name='__main__')\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
    assert ("there is no key sedd" in done.stderr) == (words[0] == "--sedd")


def test_print_config_is_a_config(tmp_path: Path) -> None:
    """What --print_config prints, read back, is the same configuration."""
    words = ["--config", str(GPT2), "--ppo.kl_coef", "0.2", "--output_dir", "elsewhere"]
    words += ["--ppo.stop_token_ids", "[3, 4]", "--overwrite"]
    done = run("ppo", [*words, "--print_config"])
    assert (done.returncode, done.stderr) == (0, "")
    printed = tmp_path / "printed.yaml"
    printed.write_text(done.stdout, encoding="utf-8")
    again = parse_config(["--config", str(printed)], "x", "x")
    assert again == parse_config(words, "x", "x")
    assert (again.ppo.kl_coef, again.output_dir, again.overwrite) == (0.2, "elsewhere", True)
    assert again.template.user.prefix == "### Instruction:\n"
    assert not (ROOT / "elsewhere").exists()


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configurations_parse(file: Path) -> None:
    """Every file of configs/, smollm2.yaml included, and what it says is what is read."""
    config = plain(parse_config(["--config", str(file)], "x", "x"))

    def holds(written: dict, read: dict) -> None:
        for key, value in written.items():
            if isinstance(value, dict):
                holds(value, read[key])
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                for item, found in zip(value, read[key], strict=True):
                    holds(item, found)
            else:
                assert read[key] == value, key

    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert written["output_dir"] == f"runs/{file.stem}"
    holds(written, config)


@pytest.mark.parametrize("script", SCRIPTS.values())
def test_scripts_stay_short(script: str) -> None:
    """A stage reads in one screen: under 80 lines."""
    assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) < 80
