"""What makes the trainers of stages 1 and 2 last: their state in our checkpoints, steps that end
when told, gradients that are looked at.

Private methods of transformers' Trainer that are replaced here (5.17 to 5.23 have them; a test
reads their signatures): `_load_from_checkpoint`, `_load_rng_state`, `_prepare_for_training`,
`_clip_grad_norm`, `_save_checkpoint`.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from cores.config import Config
from cores.draws import key
from cores.errors import UserError
from cores.run import StageRun
from cores.run.checkpoint import State
from cores.sharding import Whole

SHOWN = 3
"""Tensors named in an error."""


class Lasting:
    """Mixed into a Trainer. Weights of a checkpoint are in the model before it is made."""

    run: StageRun
    config: Config
    held: Whole

    def lasts(self, config: Config, run: StageRun, held: Whole, names: dict[str, str]) -> Any:
        """Give the trainer its run; `names` are entries of its log, with the names shown."""
        trainer: Any = self
        self.config, self.run, self.held = config, run, held
        self.skipped = self.left_out = 0
        # A loss that is no number counts as the mean of the others where its step is left out.
        trainer.args.logging_nan_inf_filter = config.faults.nonfinite == "skip"
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Steps(trainer, names))
        return self

    def go(self) -> None:
        """Train what is left. Raises `Stopped` behind a checkpoint where the run was told to."""
        trainer: Any = self
        if self.run.resumed is None:
            trainer.train()
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, TRAINER_STATE_NAME)
                path.write_text(json.dumps(self.run.resumed.numbers["trainer"]), encoding="utf-8")
                trainer.train(resume_from_checkpoint=folder)
        self.run.stepped()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Done before the trainer was made, the same way under every launch."""

    def _load_rng_state(self, checkpoint: Any) -> None:
        """Nothing draws from a generator's past: see `Steps.on_step_begin`."""

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        trainer: Any = self
        theirs = super()._prepare_for_training  # type: ignore[misc]
        prepared = theirs(max_steps, train_dataloader, None)
        resumed = self.run.resumed
        if resumed is not None and resumed.step:
            self.held.of_trainer(trainer).load_moments(resumed.tensors)
            trainer.lr_scheduler.load_state_dict(resumed.numbers["schedule"])
            rates = resumed.numbers["schedule"]["_last_lr"]
            for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        return prepared

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        if math.isfinite(float(norm)):
            self.skipped = 0
            return norm
        self.skipped += 1
        faults = self.config.faults
        if faults.nonfinite == "stop" or self.skipped > faults.max_skips:
            raise UserError(self._cause(model))
        self.left_out += 1
        model.zero_grad()  # a step without gradients changes nothing
        return norm

    def _cause(self, model: Any) -> str:
        trainer: Any = self
        stage, step = self.run.stage, trainer.state.global_step + 1
        named = list(model.named_parameters())
        bad = [n for n, p in named if p.grad is not None and not p.grad.isfinite().all()]
        weights = [n for n, p in named if not p.isfinite().all()]
        what = f"bad weights ({', '.join(weights[:SHOWN])})" if weights else "sound weights"
        where = f", in the gradients of {', '.join(bad[:SHOWN])}" if bad else ""
        return (
            f"{stage}: the gradient is not finite at step {step}{where} ({len(bad)} of "
            f"{len(named)} tensors), from {what}; the step was not taken. Lower "
            f"{stage}.learning_rate, compute in fp32 (--model.precision fp32), or leave such steps "
            "out (--faults.nonfinite skip)."
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        state = self.held.of_trainer(trainer).state(keep=self.run.launch.is_main)
        losses = gather_object([float(trainer._tr_loss)])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state.json")
            trainer.state.save_to_json(str(path))
            progress = json.loads(path.read_text(encoding="utf-8")) | {"log_history": []}
        numbers = {
            "trainer": progress,
            "schedule": _plain(trainer.lr_scheduler.state_dict()),
            "losses": losses,
            "logged": trainer._globalstep_last_logged,
            "skipped": [self.skipped, self.left_out],
        }
        self.run.save(trainer.state.global_step, State(state, numbers))


def _plain(schedule: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schedule.items() if name != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(schedule.get("lr_lambdas", []))
    }


class Steps(TrainerCallback):
    """Between the steps: random numbers, the log, checkpoints, the end."""

    def __init__(self, trainer: Any, names: dict[str, str]) -> None:
        self.trainer = trainer
        self.names = names
        """Entry of the trainer's log to the name shown."""
        self.told = False
        """The run was told to stop."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The loss since the last log line goes on where it was."""
        run, trainer = self.trainer.run, self.trainer
        if run.resumed is not None:
            losses = run.resumed.numbers["losses"]
            same = len(losses) == run.launch.world
            trainer._tr_loss += losses[run.launch.rank] if same else sum(losses) / len(losses)
            trainer._globalstep_last_logged = run.resumed.numbers["logged"]
            trainer.skipped, trainer.left_out = run.resumed.numbers["skipped"]
            if state.global_step >= state.max_steps:
                control.should_training_stop = True
        run.going_on(state.max_steps)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Dropout draws from (seed, step, rank)."""
        seed, rank = self.trainer.config.seed, self.trainer.run.launch.rank
        torch.manual_seed(key(seed, "dropout", state.global_step, rank) % 2**63)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save where it is time; stop where the run was told to."""
        last = state.global_step >= state.max_steps
        control.should_save, self.told = self.trainer.run.look(state.global_step, last)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Behind a checkpoint: the end, where it was told."""
        if self.told:
            self.trainer.run.leave(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called by the trainer every `logging_steps` optimizer steps."""
        if not logs or "loss" not in logs:
            return
        run = self.trainer.run
        values = {ours: float(logs[theirs]) for theirs, ours in self.names.items()}
        if run.config.faults.nonfinite == "skip":  # of the last step, which may be left out
            values = {name: x for name, x in values.items() if name == "loss" or math.isfinite(x)}
            values["skipped_steps"], self.trainer.left_out = float(self.trainer.left_out), 0
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"{run.stage}: the training loss is {values['loss']} at step {state.global_step}. "
                f"Lower {run.stage}.learning_rate, or compute in fp32 (--model.precision fp32)."
            )
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        line = f"{run.stage} {state.global_step}/{state.max_steps}  {shown}"
        run.log(state.global_step, values, line)
