"""TRL's policy judged on held-out prompts while it is trained, as stage 3 judges its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cores.config import Config
from cores.data import prompt_data
from cores.evaluate import evaluate
from cores.models import ScalarModel
from cores.ppo.score import Scorer
from cores.rewards.call import RewardFunctions
from cores.rewards.load import load_functions
from cores.runtime.launch import Launch
from scripts.evaluation.runs import scorer_of


def looker(
    config: Config, tokenizer: Any, policy: Any, reference: Any, reward: Any
) -> Callable[[], dict[str, Any]]:
    """What judges `policy` as it is now: a summary of one reply to each held-out prompt."""
    ppo = config.ppo
    rows = prompt_data(config, tokenizer).test[: ppo.eval_prompts]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    launch = Launch(0, 1, device, "fp32")
    for frozen in (reference, reward):
        frozen.requires_grad_(False).eval().to(device)
    models = policy, reference, ScalarModel(reward)
    loaded = load_functions(ppo.rewards, ppo.reward_timeout)
    functions = RewardFunctions(ppo, tokenizer, loaded.functions)
    made: list[Scorer] = []

    def look() -> dict[str, Any]:
        policy.eval()
        if not made:  # TRL has put the policy where it trains
            made.append(scorer_of(config, tokenizer, launch, *models, functions))
        found = evaluate(made[0], [row["input_ids"] for row in rows], rows).summary()
        policy.train()
        return found

    return look


class Judged(TrainerCallback):
    """Writes what `look` finds, at the start and every so many updates."""

    def __init__(self, look: Callable[[], dict[str, Any]], every: int, path: Path) -> None:
        self.look, self.every, self.path = look, every, path

    def _add(self, update: int) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"update": update, **self.look()}) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Update 0."""
        self.path.write_text("", encoding="utf-8")
        self._add(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Behind an update of TRL's."""
        if state.global_step % self.every == 0:
            self._add(state.global_step)
