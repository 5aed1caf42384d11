"""An ordinary folder of any checkpoint of an unfinished run.

    python scripts/export.py RUN --step N OUT

RUN: `<output_dir>/<stage>.unfinished`. OUT: a folder that is not there yet; `transformers` and
every other tool load it. Of stage 3 it is the policy; `--role critic` exports the critic. A reward
model is not calibrated yet: that comes behind its last step. The parents and the base must be where
they were when the run began.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cores.errors import UserError
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Read the run's configuration, build the model as the stage does, put the weights in, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="<output_dir>/<stage>.unfinished")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--step", type=int, required=True, help="the N of checkpoints/step-N")
    parser.add_argument("--role", choices=["actor", "critic"], default="actor", help="of stage 3")
    options = parser.parse_args(argv)
    run = options.run.expanduser().absolute()
    if options.out.exists():
        raise UserError(f"{options.out}: exists already. Give a folder that is not there yet.")

    from cores.files import read_json
    from cores.models import save_model
    from cores.run import checkpoint
    from cores.run.folder import RECORD, STATE, read_state
    from cores.runtime.launch import quiet

    quiet()
    if not (run / STATE).exists():
        done = (run / RECORD).exists()
        what = "a finished stage, a model as it stands" if done else "no unfinished run there"
        raise UserError(f"{run}: {what}. RUN is <output_dir>/<stage>.unfinished.")
    state = read_state(run / STATE, "Give the folder of an unfinished run.")
    folder = run / "checkpoints" / f"step-{options.step}"
    if not folder.is_dir():
        found = checkpoint.steps(run / "checkpoints")
        raise UserError(f"{folder}: there is no such checkpoint; there are those of steps {found}.")
    if problem := checkpoint.damage(folder, options.step):
        raise UserError(f"{folder}: damaged ({problem}). Choose another step.")
    numbers = read_json(folder / checkpoint.NUMBERS)
    saved = checkpoint.Checkpoint(folder, options.step, numbers)
    if state["stage"] != "ppo" and options.role == "critic":
        raise UserError(f"--role critic: {run} is a run of stage {state['stage']}, without one.")
    model, tokenizer, merge = built(_config(state, run.parent), state["stage"], saved, options.role)
    save_model(model, tokenizer, options.out, merge)
    print(f"wrote {options.out}")


def built(config: Any, stage: str, saved: Any, role: str) -> tuple[Any, Any, bool]:
    """The model as the stage makes it, with the weights of the checkpoint; its tokenizer; whether
    adapters are to be merged."""
    from cores.models.bases import base_tokenizer
    from cores.ppo import roles
    from cores.rewards.texts import text_reward
    from cores.runtime.elsewhere import own_base, pinned
    from cores.runtime.parents import load_parents, policy_tokenizer
    from cores.sharding.whole import load_weights
    from cores.training.ppo import needed_stages
    from cores.training.reward import reward_model
    from cores.training.sft import sft_model

    lora, part = getattr(config, stage).lora, "weights"
    if stage == "sft":
        config = pinned(config)
        tokenizer, _ = base_tokenizer(config)
        model = sft_model(config, tokenizer)
    else:
        needed = needed_stages(config) if stage == "ppo" else ["sft"]
        parents = load_parents(config, needed)
        tokenizer = policy_tokenizer(config, parents["sft"])
        if stage == "reward":
            start = parents["sft"].folder
            if config.reward.base is not None:
                start, _ = own_base(config.reward.base, tokenizer, hashed=False)
            model = reward_model(config, start, tokenizer)
        else:
            part = f"{role}.weights"
            texts, scale = text_reward(config, tokenizer, parents, []), saved.numbers["calibration"]
            if role == "actor":
                policy = roles.policy_model(config, tokenizer, parents)
                model = roles.actor_model(policy, config, tokenizer)
            elif (model := roles.critic_model(config, tokenizer, parents, texts, scale)) is None:
                raise UserError(f"--role critic: ppo.estimator {config.ppo.estimator} has none.")
    load_weights(model, saved.tensors(part))
    return (model.model if stage == "ppo" else model), tokenizer, lora.merge


def _config(state: dict[str, Any], root: Path) -> Any:
    """The configuration that the run began with, in the folder where it is now."""
    from cores.interop import config_of

    config = config_of(state)
    # How the run held what it did not train, and ran it, is no part of what it made.
    model, ppo = replace(config.model, quantization="none"), replace(config.ppo, passes="eager")
    return replace(config, output_dir=str(root), model=model, ppo=ppo)


if __name__ == "__main__":
    guarded(main)
