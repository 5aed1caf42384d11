"""The stage scripts as a user starts them, and what they leave on the disk."""

import hashlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GPT2 = ROOT / "configs" / "gpt2.yaml"
SCRIPTS = {"sft": "stage1_sft.py", "reward": "stage2_rm.py", "ppo": "stage3_ppo.py"}
PYTHON = [sys.executable]
ACCELERATE = [
    str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet",
    "--config_file", str(ROOT / "configs" / "accelerate" / "cpu.yaml"),
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
OURS = re.compile(r"(?m)^(?:error|interrupted).*(?:\n(?![EW]\d{4} |error|interrupted).+)*")
"""What a rank says, up to what torch's launcher says after it."""
FEW_STEPS = """--sft.max_steps 3 --sft.batch_size 8 --sft.microbatch_size 4
--reward.max_steps 3 --reward.batch_size 8 --reward.microbatch_size 4
--reward.calibration_samples 16 --reward.calibration_tokens 8
--ppo.updates 2 --ppo.batch_size 8 --ppo.minibatch_size 4 --ppo.microbatch_size 4 --ppo.epochs 1
--ppo.max_new_tokens 8 --ppo.eval_prompts 4 --ppo.sample_every 1""".split()
NO_ROLES = """--template.kind chat --template.user.prefix= --template.user.suffix=
--template.assistant.prefix=""".split()
"""Makes of gpt2.yaml's template the tokenizer's own."""


def sources(files: dict[str, Path]) -> list[str]:
    """Options that put local files in the place of the hub's data sets."""
    pairs = files["preference"]
    return [
        "--data.sft.path", str(files["sft"]), "--data.preference.path", str(pairs),
        "--data.prompts.path", str(pairs),
    ]  # fmt: skip


def good(model: Path, files: dict[str, Path], out: Path) -> list[str]:
    """Arguments of a short run that works: gpt2.yaml with a chat model in place of its own."""
    words = ["--config", str(GPT2), *sources(files), *FEW_STEPS, *NO_ROLES]
    return [*words, "--model.path", str(model), "--output_dir", str(out)]


def in_process(stage: str, words: list[str]) -> None:
    """One stage in this process; what it prints goes to this process's stdout."""
    importlib.import_module(SCRIPTS[stage].removesuffix(".py")).main(words)


def script(name: str, words: list[Any]) -> None:
    """A file of scripts/ in this process."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(word) for word in words])


def one_paragraph(err: str) -> str:
    """An error message on one line, after checking that it is all there is."""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert "\n\n" not in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    return " ".join(err.split())


def run(
    stage: str, arguments: list[Any], launcher: list[str] = PYTHON, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess[str]:
    """One stage as a process of its own, in the repository's folder."""
    return subprocess.run(
        [*launcher, SCRIPTS[stage], *map(str, arguments)],
        cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip


def environment(**env: str) -> dict[str, str]:
    """This process's environment without what other tests left in it, hub out of reach."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "HF_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        kept.pop(name, None)
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the discard port: refused at once
    return {**kept, **hub, "OMP_NUM_THREADS": "1", **env}


def record(folder: Path) -> dict[str, Any]:
    """stage.json of a stage folder."""
    return json.loads((folder / "stage.json").read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its digest; empty where there is no folder."""
    found = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.exists() else []
    return {str(p.relative_to(folder)): sha256(p) for p in found}
