"""The command line before any work: help, the printed configuration, the files we ship."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from _helpers import GPT2, ROOT, SCRIPTS, run

from cores.config import parse_config, plain
from cores.config.help import FIRST, completion, page, versions
from cores.errors import UserError

HEAVY = ["torch", "transformers", "datasets", "trl", "peft", "accelerate", "numpy"]


@pytest.mark.parametrize("stage", list(SCRIPTS))
def test_help_is_quick(stage: str) -> None:
    """Under two seconds (the best of three: another test may hold the processor)."""
    taken = []
    for _ in range(3):
        start = time.monotonic()
        done = run(stage, ["--help", "all"])
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
def test_the_page_of_help_is_short(stage: str) -> None:
    """A page, with what the stage needs first; a section by its name; no other word."""
    prog = SCRIPTS[stage]
    told = page(prog, "", None).splitlines()
    assert len(told) <= 100
    assert max(map(len, told)) <= 100
    keys = {line.split()[0] for line in told if line.startswith("  --")}
    assert f"--{FIRST[prog][0]}" in keys
    assert not keys & {f"--{FIRST[other][0]}" for other in SCRIPTS.values() if other != prog}
    assert "--rollout.engine" in page(prog, "", "rollout")
    assert "--seed" not in page(prog, "", "rollout")
    with pytest.raises(UserError, match="--help foo: is no section"):
        page(prog, "", "foo")


def test_versions_and_completion() -> None:
    """Of what is installed; bash completes keys and choices behind a stage's script alone."""
    assert re.match(r"tristage \d.*, torch \d.*, Python 3\.", versions())
    script = completion("bash")
    for line, expected in (
        ("python stage3_ppo.py --ppo.esti", "--ppo.estimator"),
        ("python stage3_ppo.py --rollout.engine g", "graph"),
        ("python other.py --ppo.esti", ""),
    ):
        typed = line.split()
        told = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(typed) - 1}; _tristage"
        done = subprocess.run(
            ["bash", "-c", f'{told}; echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True
        )
        assert (done.stdout.strip(), done.stderr) == (expected, "")
    with pytest.raises(UserError, match="there is bash"):
        completion("fish")


@pytest.mark.parametrize("stage", list(SCRIPTS))
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--sedd", "1"], ["--print_config"]])
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
