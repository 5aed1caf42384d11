"""`logging.samples: false`: no prompt and no reply in any file of a run, whatever happens to it."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from _helpers import good, in_process, rows, script

from cores.runtime.screen import LOG

REWARD = """
def fair(prompts, responses, rows):
    print("asked:", prompts[0], responses[0])
    return [float(len(r)) for r in responses]

def broken(prompts, responses, rows):
    raise ValueError(prompts[0])
"""


def words(
    source: Path, out: Path, llama: Path, files: dict[str, Path], function: str, samples: bool
) -> list[Any]:
    """Stage 3 on finished stages, its score from a function that prints what it reads."""
    shutil.copytree(source, out)
    code = out.parent / "reward.py"
    code.write_text(REWARD, encoding="utf-8")
    installed = [name for name in ("tensorboard", "wandb", "trackio") if find_spec(name)]
    return [
        *good(llama, files, out), "--ppo.rewards", f'{{"{code}:{function}": 1.0}}',
        "--logging.trackers", str(installed).replace("'", '"'), "--logging.samples", str(samples),
        "--checkpoint.every_steps", 1, "--ppo.critic_init", "zero",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: Any, finished: Path, llama: Path, files: Any) -> set[str]:
    """What the run asks and is told, learned from the same run with samples."""
    out = tmp_path_factory.mktemp("open") / "run"
    given = words(finished, out, llama, files, "fair", samples=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(out.parent / "trackio"))
        in_process("ppo", [str(word) for word in given])
    sampled = rows(out / "ppo" / "samples.jsonl")
    compared = rows(out / "ppo" / "held_out_samples.jsonl")
    found = {row[key] for row in sampled for key in ("prompt", "reply")}
    found |= {row["prompt"] for row in compared} | {row["after"]["text"] for row in compared}
    return {text.strip() for text in found if len(text.split()) > 2}


def holding(folder: Path, texts: set[str]) -> list[str]:
    """Files with one of the texts, in any encoding that keeps ASCII words together."""
    wanted = {max(text.splitlines(), key=len).encode() for text in texts}
    places = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    return [str(p) for p in places if any(text in p.read_bytes() for text in wanted)]


def test_the_open_run_holds_them(texts: set[str], tmp_path_factory: Any) -> None:
    """Else the other tests could not fail."""
    folders = [p for p in tmp_path_factory.getbasetemp().glob("open*") if p.is_dir()]
    names = {Path(name).name for folder in folders for name in holding(folder, texts)}
    assert {"samples.jsonl", "held_out_samples.jsonl", "log.txt"} <= names


@pytest.mark.parametrize("function", ["fair", "broken"])
def test_no_file_holds_a_prompt_or_a_reply(
    function: str, texts: set[str], finished: Path, llama: Path, files: Any, tmp_path: Path,
    call: Any,
) -> None:  # fmt: skip
    """Of a run that ends well, and of one whose function fails with a prompt for a message: that is
    said on the screen alone."""
    out = tmp_path / "run"
    status, _, err = call("ppo", words(finished, out, llama, files, function, samples=False))
    assert status == (function == "broken"), err
    if function == "fair":
        given = words(finished, tmp_path / "none", llama, files, function, samples=False)
        script("evaluate.py", [*given, "--output_dir", out])
        assert "ppo" in json.loads((out / "evaluation.json").read_text())["policies"]
    assert holding(out, texts) == []
    if function == "fair":
        assert (out / "ppo" / "metrics.jsonl").exists()
        assert (out / "report.html").exists()
        return
    assert "please" in err
    log = (out / "ppo.unfinished" / "log.txt").read_text(encoding="utf-8")
    assert "UserError: what it says may quote a reply" in log


def test_checkpoints_hold_no_rows(
    texts: set[str], finished: Path, llama: Path, files: Any, tmp_path: Path, call: Any
) -> None:
    """Not as ids either; a run that goes on from one with the key changed has no pairs to show."""
    out = tmp_path / "run"
    given = words(finished, out, llama, files, "fair", samples=False)
    stopped = [*given, "--checkpoint.stop_after_minutes", 1e-4]
    assert call("ppo", stopped)[0] == 75
    (numbers,) = (out / "ppo.unfinished" / "checkpoints").glob("step-*/state.json")
    assert '"replies": []' in numbers.read_text(encoding="utf-8")
    assert call("ppo", [*given, "--logging.samples", "true"])[0] == 0
    assert (out / "ppo" / "samples.jsonl").exists()
    assert not (out / "ppo" / "held_out_samples.jsonl").exists()
    assert LOG.path is None
