"""Do the stages learn on 8- and 4-bit bases as on whole ones? The demo, with adapters, three times.

    python scripts/check_quantized.py OUT [--section.key value ...]

One full stage 1, and from it all stages with adapters of rank 8 on each kind of base; prints a line
a kind. Further arguments go to every stage. Needs bitsandbytes; on a GPU it takes minutes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("none", "8bit", "4bit")
SCRIPTS = {"sft": "stage1_sft.py", "reward": "stage2_rm.py", "ppo": "stage3_ppo.py"}
SHORT = "--sft.max_steps 100 --reward.max_steps 250 --ppo.updates 12".split()
HEADER = f"{'base':6}{'held-out loss':>18}{'accuracy':>10}{'score':>18}{'KL':>7}{'gap':>8}"


def run(stage: str, words: list[str]) -> None:
    """One stage of the demo's configuration in bf16; what it prints is shown."""
    command = [sys.executable, SCRIPTS[stage], "--config", "configs/demo.yaml"]
    words = ["--ppo.old_logprobs", "recompute", *words]  # the table has their gap after training
    subprocess.run([*command, "--model.precision", "bf16", *words], cwd=ROOT, check=True)


def row(kind: str, metrics: dict[str, Any]) -> str:
    """The line of a kind of base from its stages' final metrics."""
    sft, ppo = metrics["sft"], metrics["ppo"]
    before, after = ppo["before"], ppo["after"]
    return (
        f"{kind:6}{sft['test_loss_before']:8.4f} -> {sft['test_loss']:.4f}"
        f"{metrics['reward']['accuracy']:10.4f}"
        f"{before['score']:+7.2f} -> {after['score']:+.2f}+-{after['score_interval']:.2f}"
        f"{after['kl']:7.2f}{ppo['last']['rollout_logprob_gap']:8.4f}"
    )


def main(out: Path, more: list[str]) -> None:
    """Train and print the table."""
    subprocess.run(
        [sys.executable, "research/demo/make.py", "--out", "runs/demo"], cwd=ROOT, check=True
    )
    run("sft", ["--output_dir", str(out / "full"), *more])
    lines = [HEADER]
    for kind in KINDS:
        own = ["--output_dir", str(out / kind), "--model.path", str(out / "full" / "sft")]
        own += ["--model.quantization", kind, *SHORT]
        for stage in SCRIPTS:
            own += [f"--{stage}.lora.rank", "8"]
        for stage in SCRIPTS:
            run(stage, [*own, *more])
        folder = out / kind
        read = {s: json.loads((folder / s / "stage.json").read_text("utf-8")) for s in SCRIPTS}
        lines.append(row(kind, {stage: facts["metrics"] for stage, facts in read.items()}))
    print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python scripts/check_quantized.py OUT [--section.key value ...]")
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
