"""All stages in one launch, with full weights and with adapters; and the inputs they start from.

    _modes_worker.py make FOLDER gpt2|llama        on one process, once
    _modes_worker.py run FOLDER OUT [--key value ...]      in any launch

Every launch starts each stage from the same parents, so that one stage's rounding is not the next
one's difference. `run` leaves in OUT/full and OUT/lora: sft, reward, ppo (as a user gets them) and
steps (PPO on fixed replies, for comparison: what is sampled depends on the number of processes).
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

for folder in ("integration", "unit"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

import _tiny  # noqa: E402
from _helpers import FEW_STEPS, GPT2, NO_ROLES, ROOT, sources  # noqa: E402

LORA = {"full": 0, "lora": 4}
LARGE_STEPS = """--sft.learning_rate 1e-3 --reward.learning_rate 1e-3 --sft.warmup 0
--reward.warmup 0 --sft.microbatch_size 2 --reward.microbatch_size 2 --sft.max_grad_norm 0.3
--reward.max_grad_norm 0.3""".split()
"""So that weights move far beyond rounding, over accumulated micro-batches, clipped."""


def make(folder: Path, kind: str) -> None:
    """A base model, data, and finished stages 1 and 2 of them under `folder`/parents."""
    import stage1_sft
    import stage2_rm

    folder.mkdir(parents=True, exist_ok=True)
    {"gpt2": _tiny.make_gpt2, "llama": _tiny.make_llama}[kind](folder / "base")
    undropped(folder / "base" / "config.json")
    _tiny.make_data(folder / "data")
    for stage in (stage1_sft, stage2_rm):
        stage.main([*words(folder), "--output_dir", str(folder / "parents")])


def undropped(path: Path) -> None:
    """Dropout 0 in a model's config.json: ranks draw different masks."""
    config = json.loads(path.read_text())
    config.update({key: 0.0 for key in config if key.endswith(("_pdrop", "dropout"))})
    path.write_text(json.dumps(config))


def words(folder: Path) -> list[str]:
    """Arguments of short runs on what `make` left."""
    files = {"sft": "alpaca.jsonl", "preference": "rm_static.jsonl"}
    data = sources({name: folder / "data" / file for name, file in files.items()})
    own = NO_ROLES if "chat_template.jinja" in os.listdir(folder / "base") else []
    common = [
        "--config",
        str(GPT2),
        *data,
        *FEW_STEPS,
        *LARGE_STEPS,
        *own,
        "--model.path",
        str(folder / "base"),
    ]
    return common


def run(folder: Path, out: Path, extra: list[str]) -> None:
    """Each stage from the same parents, in the launch that this process is part of."""
    from _ppo_steps import ppo_steps

    import stage1_sft
    import stage2_rm
    import stage3_ppo

    shard_everything()
    small_chunks()

    from cores.config import parse_config
    from cores.runtime.launch import launch

    for name, rank in LORA.items():
        place = out / name
        adapters = [f"--{stage}.lora.rank={rank}" for stage in ("sft", "reward", "ppo")]
        arguments = [*words(folder), *adapters, *extra, "--output_dir", str(place)]
        one_stage(stage1_sft.main, arguments)
        swap(folder, place, "sft")
        one_stage(stage2_rm.main, arguments)
        swap(folder, place, "reward")
        one_stage(stage3_ppo.main, arguments)
        process = launch(parse_config(arguments, "", ""))
        ppo_steps(folder / "parents", place / "steps", rank, process)
        forget()


def shard_everything() -> None:
    """ZeRO-3 leaves weights below a size whole; these models are below it in every weight."""
    from cores.sharding import deepspeed_asked

    if not deepspeed_asked():
        return
    from cores.sharding import zero

    launched = zero.launched_settings

    def settings() -> dict[str, Any]:
        found = launched()
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return found

    zero.launched_settings = settings


def small_chunks() -> None:
    """Log-probs in several chunks a forward pass, of which ranks with longer replies have more."""
    from cores.models import actor

    actor.CHUNK_LOGITS = 4000


def one_stage(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    """A stage as in a process of its own: accelerate's state is one a process."""
    main(arguments)
    forget()


def forget() -> None:
    """Let the next Accelerator and the next ZeRO-3 engine of this process be its first.

    DeepSpeed numbers modules on, and checks that ranks agree; only rank 0 merges and saves.
    """
    from accelerate.state import AcceleratorState, GradientState

    if "deepspeed" in sys.modules:
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

        DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0

    AcceleratorState._reset_state()
    GradientState._reset_state()


def swap(folder: Path, place: Path, stage: str) -> None:
    """Keep what this launch trained as <stage>_trained; the next stage starts from the parents."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        (place / stage).rename(place / f"{stage}_trained")
        shutil.copytree(folder / "parents" / stage, place / stage)
    PartialState().wait_for_everyone()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    task, target, *rest = sys.argv[1:]
    if task == "make":
        make(Path(target), rest[0])
    else:
        run(Path(target), Path(rest[0]), rest[1:])
