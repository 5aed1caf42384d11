"""Run the PPO of `trl==1.12.0` (trl.experimental.ppo, its last release) on our checkpoints.

    python research/experiments/peer_trl.py --sft runs/demo/sft --reward runs/demo/reward
        --config configs/demo.yaml --out runs/peer/seed0 --seed 0
        [--learning-rate 3e-4] [--kl-coef 0.1] [--set vf_coef=0.5 ...] [--section.key value ...]

In an environment of its own (or with that release before the installed one on PYTHONPATH), on a
GPU where there is one. Writes the policy as an ordinary folder, metrics.jsonl (a line an update)
and peer.json (every setting, versions, seconds); with --held-out also evaluations.jsonl, the policy
judged on held-out prompts every `ppo.eval_every` updates as stage 3 judges its own. `--set` sets
any field of TRL's PPOConfig, last; what neither it nor the list below names is TRL's default.

The same for both: initial policy, reference, reward model, initial value model, prompt ids,
dropout off, pad excluded from every distribution, and from the configuration's `ppo` section the
replies an update, updates, minibatches, epochs, reply length, temperature, missing-EOS penalty,
gamma, lambda and both clips; by default also kl_coef and the actor's learning rate.

Optimizer steps: TRL steps once in gradient_accumulation_steps * per_device_train_batch_size
replies, which is its whole batch, so num_mini_batches is without effect (TRL issue 5645). With
gradient_accumulation_steps 1 and all replies in one micro-batch that is cut off at the minibatch's
end, each minibatch is a step, as ours. The count is checked at the end.

What stays TRL's: one AdamW (betas .9 and .999, epsilon 1e-8) and one learning rate for policy and
value model, falling linearly to 0 without a warm-up; value loss times 0.1; no gradient clipping; no
clip of the score; the score on the position after the end-of-sequence token; the order of the
prompts.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.config import Config, parse_config
from cores.errors import UserError
from cores.runtime.cli import guarded

NAMES = {"kl": "objective/kl", "score": "objective/scores"}
"""Our name of what TRL reports. Its score has the missing-EOS penalty taken off."""
RELEASE = "1.12.0"


def settings(config: Config, out: Path, more: dict[str, Any]) -> dict[str, Any]:
    """Arguments of TRL's PPOConfig that say what the configuration says; `more` wins."""
    import torch

    ppo = config.ppo
    return {
        "output_dir": str(out),
        "seed": config.seed,
        "total_episodes": ppo.updates * ppo.batch_size,
        "per_device_train_batch_size": ppo.batch_size,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": ppo.batch_size // ppo.minibatch_size,
        "num_ppo_epochs": ppo.epochs,
        "local_rollout_forward_batch_size": ppo.batch_size,  # at once: the fastest
        "response_length": ppo.max_new_tokens,
        "temperature": ppo.temperature,
        "stop_token": "eos",
        "missing_eos_penalty": ppo.missing_eos_penalty,
        "learning_rate": ppo.actor_learning_rate,
        "kl_coef": ppo.kl_coef,
        "gamma": ppo.gamma,
        "lam": ppo.lam,
        "cliprange": ppo.clip,
        "cliprange_value": ppo.value_clip,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "num_sample_generations": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }


def optimizer_steps(given: dict[str, Any]) -> int:
    """Steps that a run of these settings should take."""
    batch = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    updates = -(-given["total_episodes"] // batch)
    return updates * given["num_ppo_epochs"] * given["num_mini_batches"]


def parse_set(words: list[str]) -> dict[str, Any]:
    """`name=value` words, a value as in YAML; UserError for a word of another form."""
    import yaml

    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--set {word}: write name=value, such as vf_coef=0.5.")
        # YAML 1.1 takes 1e-5 for a text.
        found[name] = float(value) if _is_number(value) else yaml.safe_load(value)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not text.lstrip("+-").isdigit()


def scalar(folder: Path) -> Any:
    """The stage-2 model, its head less `reward_mean`: TRL reads `score` off the hidden states, and
    gets the calibrated score."""
    import torch

    from cores.models import load_scalar

    class Calibrated(torch.nn.Module):
        def __init__(self, head: torch.nn.Module, mean: float) -> None:
            super().__init__()
            self.head = head
            self.mean = mean

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            """Scores (B, L, 1) of hidden states (B, L, d)."""
            return self.head(hidden) - self.mean

    model: Any = load_scalar(folder)
    model.score = Calibrated(model.score, float(model.config.reward_mean))
    return model


def policy_of(folder: Path, tokenizer: Any) -> Any:
    """The stage-1 model with pad excluded from its distributions, as in our rollouts."""
    from cores.models import load_policy

    return load_policy(folder, dropout=False, tokenizer=tokenizer)


def recorder(path: Path) -> Any:
    """A callback that writes a line an update."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.start = time.monotonic()
            path.write_text("", encoding="utf-8")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            row = {
                "update": state.global_step,
                "samples": logs["episode"],
                "seconds": round(time.monotonic() - self.start, 3),
                **{ours: logs[theirs] for ours, theirs in NAMES.items()},
                "trl": logs,
            }
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    return Recorder()


def train(
    config: Config, sft: Path, reward: Path, out: Path, more: dict[str, Any], judge: bool
) -> None:
    """One run of TRL's PPO, saved to `out`."""
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from cores.data import prompt_data
    from cores.models import load_scalar, load_tokenizer, save_model
    from cores.runtime.launch import quiet

    quiet()
    tokenizer = load_tokenizer(sft)
    prompts = [row["input_ids"] for row in prompt_data(config, tokenizer).train]
    tokenizer.padding_side = "left"  # TRL's collator pads prompts; the saved tokenizer is ours
    given = settings(config, out, more)
    policy = policy_of(sft, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    callbacks = [recorder(out / "metrics.jsonl")]
    if judge:
        from research.samples.held_out import Judged, looker

        models = (policy, policy_of(sft, tokenizer), load_scalar(reward))
        look = looker(config, load_tokenizer(sft), *models)
        callbacks.append(Judged(look, config.ppo.eval_every, out / "evaluations.jsonl"))
    transformers.set_seed(given["seed"])  # TRL leaves numpy's, which draws its minibatches
    trainer = PPOTrainer(
        args=PPOConfig(**given),
        processing_class=tokenizer,
        model=policy,
        ref_model=policy_of(sft, tokenizer),
        reward_model=scalar(reward),
        value_model=scalar(reward),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=callbacks,
    )
    start = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - start
    steps = int(next(iter(trainer.optimizer.state.values()))["step"])
    if steps != optimizer_steps(given):
        raise RuntimeError(f"TRL took {steps} optimizer steps, not {optimizer_steps(given)}.")
    save_model(policy, load_tokenizer(sft), out)
    versions = {module.__name__: module.__version__ for module in (trl, transformers, torch)}
    record = {"versions": versions, "settings": given, "optimizer_steps": steps, "seconds": seconds}
    (out / "peer.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{steps} optimizer steps in {seconds:.1f} s; wrote {out}")


def check_release() -> None:
    """UserError if another release of TRL would be imported."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("trl")
    except PackageNotFoundError:
        found = "none"
    if found != RELEASE:
        raise UserError(
            f"trl {RELEASE} is needed, the last with PPO, and {found} is installed. Make an "
            f"environment of its own, or `pip install --no-deps --target FOLDER trl=={RELEASE}` "
            "and put FOLDER on PYTHONPATH."
        )


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run TRL's PPO on our checkpoints.")
    parser.add_argument("--sft", type=Path, required=True, help="folder of stage 1")
    parser.add_argument("--reward", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--config", default="configs/demo.yaml", help="configuration of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, help="of policy and value model")
    parser.add_argument("--kl-coef", type=float, help="price of a nat of KL")
    parser.add_argument("--held-out", action="store_true", help="judge on held-out prompts too")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of PPOConfig")
    args, others = parser.parse_known_args(argv)
    check_release()
    more = {"learning_rate": args.learning_rate, "kl_coef": args.kl_coef}
    more = {name: value for name, value in more.items() if value is not None}
    words = ["--config", args.config, *others, "--seed", str(args.seed)]
    config = parse_config(words, "research/experiments/peer_trl.py", "")
    more |= parse_set(args.set)
    if args.held_out and not config.ppo.eval_every:
        raise UserError("--held-out: give --ppo.eval_every, the updates between looks.")
    train(config, args.sft, args.reward, args.out, more, args.held_out)


if __name__ == "__main__":
    guarded(main)
