"""The planner against what GPUs measured, its page, its command line, and what stages say."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _plans import H100, SEVEN, case_of, numbers_of

from cores import forecast
from cores.config import Config, parse_config
from cores.errors import UserError
from cores.memory import Layout
from cores.shapes import shape_from
from scripts.bench import plan_error, scaling
from scripts.plan.layouts import best_of, largest, plan, ways
from scripts.plan.text import launch_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", plan_error.measured(), ids=lambda file: file.stem)
def test_plans_are_as_near_to_what_was_measured_as_said(file: Path) -> None:
    size, most, time, took = plan_error.compared(json.loads(file.read_text(encoding="utf-8")))
    assert size / most == pytest.approx(1, abs=plan_error.PEAK)
    assert time / took == pytest.approx(1, abs=plan_error.SECONDS)


def test_the_configuration_is_kept_where_it_fits_and_the_same_training_comes_next() -> None:
    case = case_of("--model.precision", "bf16", layout=Layout(1, card=80e9))
    small = replace(case, **dict.fromkeys(("policy", "judge"), shape_from(numbers_of("llama"), "")))
    assert best_of(ways("ppo", small, H100, 1)).options == {}  # type: ignore[union-attr]
    eight = replace(case, layout=Layout(8, card=80e9))
    found = best_of(ways("ppo", eight, H100, 1))
    assert found is not None
    assert found.case.layout.shards in ("zero3", "fsdp2")
    assert "ppo.lora.rank" not in found.options
    alone = best_of(ways("ppo", replace(case, layout=Layout(1, card=80e9)), H100, 1))
    assert alone is not None
    assert alone.case.layout.offload
    assert best_of(ways("ppo", replace(case, layout=Layout(1, card=1e9)), H100, 1)) is None


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    words = ("--model.precision", "bf16", "--ppo.lora.rank", "8", "--model.quantization", "bf16")
    chosen = plan("ppo", case_of(*words, layout=Layout(card=75e9)), H100, 1, {})
    size = largest(chosen, H100, 1)
    assert 1 < size < 32
    for rows, fits in ((size, True), (2 * size, False)):
        again = plan("ppo", chosen.case, H100, 1, {"ppo.microbatch_size": rows})
        assert again.fits is fits


def test_the_page_is_what_the_scripts_make_of_it() -> None:
    """docs/scaling.md: a change of the model of memory or time shows there."""
    text = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.page(text) == text
    assert plan_error.table(plan_error.measured()) in text


def run(*words: str) -> Any:
    """The command."""
    command = [sys.executable, "scripts/plan.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config.json of a 7B model alone, and a configuration that names it."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "config.json").write_text(json.dumps(SEVEN), encoding="utf-8")
    text = f"model: {{path: {folder}, precision: bf16}}\noutput_dir: {folder}/run\n"
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return folder


def test_a_config_json_is_enough(base: Path, tmp_path: Path) -> None:
    """All stages, figures and a launch file for two hosts; nothing else is written."""
    out, launch = tmp_path / "plan.json", tmp_path / "launch.yaml"
    words = ["--config", f"{base}/c.yaml", "--gpus", "8", "--gpu-memory", "80", "--nodes", "2"]
    done = run(*words, "--json", str(out), "--launch", str(launch), "--ppo.batch_size", "64")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert list(found) == ["sft", "reward", "ppo"]
    for stage in found.values():
        assert 0 < stage["peak_gb"] <= 80
        assert stage["seconds"] == pytest.approx(sum(stage["parts"].values()))
        sums = [sum(row[2] for row in phase) for phase in stage["memory_gb"].values()]
        assert stage["peak_gb"] == pytest.approx(max(sums))
    assert "num_processes: 16" in launch.read_text(encoding="utf-8")
    assert "num_machines: 2" in launch.read_text(encoding="utf-8")
    assert sorted(path.name for path in base.iterdir()) == ["c.yaml", "config.json"]


def test_nothing_fits(base: Path, tmp_path: Path) -> None:
    """Exit status 1, the figures of the configuration as it is, and what each way would take."""
    out = tmp_path / "plan.json"
    words = ["--config", f"{base}/c.yaml", "--gpus", "1", "--gpu-memory", "4"]
    done = run(*words, "--stage", "sft", "--json", str(out))
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(out.read_text(encoding="utf-8"))["sft"]["peak_gb"] > 100
    assert "4bit" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "0"], "--gpus is 0"),
        (["--gpu-memory", "-5"], "--gpu-memory is -5"),
        (["--gpus", "three"], "invalid int value"),
        (["--gpus", "3"], "do not divide over 3 processes"),
        (["--sft.microbatch_size", "3"], "3 does not divide the 32 rows of a process"),
        (["--model.path", "/nowhere/at/all"], "there is no /nowhere/at/all/config.json"),
        (["--ppo.batch_sise", "8"], "Did you mean ppo.batch_size"),
        (["--gpu", "GTX"], "--gpu GTX is not known"),
    ],
)
def test_wrong_words_are_a_paragraph(base: Path, words: list[str], said: str) -> None:
    given = ["--config", f"{base}/c.yaml", "--gpus", "1", "--gpu-memory", "80", *words]
    done = run(*given)
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_unknown_models_are_named() -> None:
    with pytest.raises(UserError, match="model_type t5 is none"):
        shape_from({"model_type": "t5"}, "config.json")
    with pytest.raises(UserError, match="hidden_size or n_embd"):
        shape_from({**SEVEN, "hidden_size": "wide"}, "config.json")


def test_torch_is_not_needed(base: Path) -> None:
    code = (
        "import sys; sys.argv = ['plan.py']; import scripts.plan.times, scripts.plan.text;"
        "import cores.forecast; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def told(monkeypatch: pytest.MonkeyPatch, config: Config, card: float, kind: str) -> list[str]:
    """What a stage says on a GPU of so many bytes, or on a CPU."""
    facts = SimpleNamespace(total_memory=card)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    said: list[str] = []
    held = SimpleNamespace(name="DDP", offload=False)
    launch = SimpleNamespace(device=torch.device(kind), world=1, sharding=held, say=said.append)
    forecast.forecast(config, "ppo", launch)
    return said


def test_stages_say_what_they_will_hold(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    config = parse_config(["--config", f"{base}/c.yaml"], "", "")
    adapted = replace(config, ppo=replace(config.ppo, lora=replace(config.ppo.lora, rank=8)))
    assert told(monkeypatch, config, 80e9, "cpu") == []
    (line,) = told(monkeypatch, adapted, 80e9, "cuda")
    assert "of 80.0 GB a GPU, in the " in line
    with pytest.raises(UserError, match=r"alone are \d+ GB a GPU, and it has 80.*zero3.yaml"):
        told(monkeypatch, config, 80e9, "cuda")
    t5 = replace(config, model=replace(config.model, path="/nowhere"))
    (line,) = told(monkeypatch, t5, 80e9, "cuda")
    assert line.startswith("memory is not counted beforehand: model.path: there is no")


def test_launch_files_are_those_of_the_folder() -> None:
    for shards in ("none", "zero2", "zero3"):
        layout = Layout(4, shards)
        text = launch_file(plan("sft", case_of(layout=layout), H100, 1, {}), 1)
        assert "num_processes: 4 " in text
