"""Between the steps of stages 1 and 2: random numbers, the log, checkpoints, the end."""

import math
import time
from typing import Any

import torch
from transformers import TrainerCallback

from cores.draws import key
from cores.errors import ANEW, UserError


class Steps(TrainerCallback):
    """Of a trainer of stages 1 and 2 (`Lasting`)."""

    def __init__(self, trainer: Any, names: list[str]) -> None:
        self.trainer, self.names = trainer, names
        self.seen_at = 0.0
        """When the tokens were counted last."""
        self.told = False
        """The run was told to stop."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The loss since the last log line goes on where it was."""
        run, trainer = self.trainer.run, self.trainer
        if run.resumed is not None:
            losses = run.resumed.numbers["losses"]
            same = len(losses) == run.launch.world
            trainer._tr_loss += losses[run.launch.rank] if same else sum(losses) / len(losses)
            sums = run.resumed.numbers.get("sums", [])  # none in checkpoints of older versions
            for rank in sums[run.launch.rank :: run.launch.world]:
                trainer.sums = {n: trainer.sums.get(n, 0.0) + x for n, x in rank.items()}
            trainer._globalstep_last_logged = run.resumed.numbers["logged"]
            trainer.skipped, trainer.left_out = run.resumed.numbers["skipped"]
            if state.global_step >= state.max_steps:
                control.should_training_stop = True
        run.going_on(state.max_steps, self.trainer.model)
        self.seen_at = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Dropout draws from (seed, step, rank)."""
        seed, rank = self.trainer.run.config.seed, self.trainer.run.launch.rank
        torch.manual_seed(key(seed, "dropout", state.global_step, rank) % 2**63)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save where it is time; stop where the run was told to."""
        last = state.global_step >= state.max_steps
        control.should_save, self.told = self.trainer.run.look(state.global_step, last)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Behind a checkpoint: the end, where it was told."""
        if self.told:
            self.trainer.run.leave(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the trainer every `logging_steps` optimizer steps."""
        if not logs or "loss" not in logs:
            return
        run = self.trainer.run
        values = {name: float(logs[name]) for name in self.names}
        now, tokens = time.monotonic(), self.trainer.tokens * run.launch.world
        values["tokens_per_second"] = tokens / max(now - self.seen_at, 1e-9)
        self.seen_at, self.trainer.tokens = now, 0
        scaled = self.trainer.accelerator.scaler is not None
        if run.config.faults.nonfinite == "skip" or scaled:  # the last step may be left out
            values = {name: x for name, x in values.items() if name == "loss" or math.isfinite(x)}
            values["skipped_steps"], self.trainer.left_out = float(self.trainer.left_out), 0
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"{run.stage}: the training loss is {values['loss']} at step {state.global_step}. "
                f"Lower {run.stage}.learning_rate, or compute in fp32 (--model.precision fp32), "
                f"{ANEW}."
            )
        rate = values["tokens_per_second"]
        told = (f"{k} {v:.4g}" for k, v in values.items() if k != "tokens_per_second")
        run.log(state.global_step, values, "  ".join([*told, f"{rate:.0f} tok/s"]))
