"""What a stage says of its memory on GPUs at its start, and what it refuses to begin."""

import math
from pathlib import Path
from typing import Any

from cores.config import Config
from cores.errors import UserError
from cores.memory import Case, Layout, needed, peak, total
from cores.shapes import Shape, Texts, read_shape

SHARDS = {"FSDP2": "fsdp2", **{f"DeepSpeed ZeRO-{n}": f"zero{n}" for n in (1, 2, 3)}}
"""Names of `cores.sharding` in `Layout`."""
CERTAIN = ("weights", "gradients", "optimizer")
"""What cannot be made smaller by smaller micro-batches or recomputing."""


def shapes_of(config: Config, stage: str) -> tuple[Shape, Shape]:
    """Of stage 1's model and of the reward model, by the config.json of what the stage starts from,
    or will; UserError if there is none, or its family is not known."""
    done = Path(config.output_dir) / "sft"
    if stage == "sft":
        model = read_shape(config.model.path, "model.path")
        return model, model
    if config.sft.path is not None or not (done / "config.json").is_file():
        key = "sft.path" if config.sft.path else "model.path"
        policy = read_shape(config.sft.path or config.model.path, key)
    else:
        policy = read_shape(str(done), "output_dir")
    for key, path in (("reward.path", config.reward.path), ("reward.base", config.reward.base)):
        if path is not None:
            return policy, read_shape(path, key)
    return policy, policy


def least(case: Case, stage: str) -> float:
    """Bytes below which a GPU cannot hold the stage."""
    phases = needed(case, stage).values()
    return max(total([each for each in held if each.what in CERTAIN]) for held in phases)


def forecast(config: Config, stage: str, launch: Any) -> None:
    """Say what a stage will hold on each GPU. UserError where that certainly is more than there is;
    on a CPU, and where data is looked at alone, nothing is said."""
    part = stage == "sft" and (config.model.trainable or config.sft.prefix_tokens)
    if launch.device.type != "cuda" or config.data.inspecting or part:
        return  # of a part of the weights nothing is known here
    import torch

    card = float(torch.cuda.get_device_properties(launch.device).total_memory)
    held, ppo = launch.sharding, config.ppo
    layout = Layout(launch.world, SHARDS.get(held.name, "none"), held.offload, card)
    texts = Texts(ppo.max_prompt_length, ppo.max_new_tokens, ppo.max_new_tokens)
    try:
        case = Case(config, *shapes_of(config, stage), layout, texts)
    except UserError as error:
        return launch.say(f"memory is not counted beforehand: {error}")
    if (bound := least(case, stage)) > card:
        gpus = math.ceil(bound * launch.world / card) + 1
        raise UserError(
            f"{stage}: weights, gradients and optimizer alone are {bound / 1e9:.0f} GB a GPU, and "
            f"it has {card / 1e9:.0f}. Train adapters on frozen weights (--{stage}.lora.rank 16 "
            "--model.quantization bf16, with --model.precision bf16), spread them (configs/"
            f"accelerate/zero3.yaml, on {gpus} GPUs or more), or take a smaller model; `python "
            "scripts/plan.py --config FILE --gpus N --gpu-memory GB` shows what fits."
        )
    phase, most = peak(needed(case, stage))
    doubt = "" if most < card else ", which may not fit: scripts/plan.py shows what would"
    launch.say(
        f"memory: up to {most / 1e9:.1f} of {card / 1e9:.1f} GB a GPU, in the {phase}, with rows "
        f"as long as they may be{doubt}"
    )
