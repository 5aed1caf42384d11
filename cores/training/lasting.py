"""What the trainers of stages 1 and 2 have in common: arguments, their state in our checkpoints,
steps that end when told, gradients that are looked at.

Private methods of transformers' Trainer that are replaced here (5.17 to 5.23 have them; a test
reads their signatures): `_load_from_checkpoint`, `_load_rng_state`, `_prepare_for_training`,
`_clip_grad_norm`, `_save_checkpoint`, `_get_train_sampler`.
"""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from cores.config import RewardSection, SFTSection
from cores.errors import ANEW, UserError
from cores.models.actor import plain_model
from cores.models.tuning import fitting
from cores.rl.schedule import lr_factor, warmup_steps
from cores.run import StageRun
from cores.run.checkpoint import State
from cores.sharding.whole import load_weights
from cores.training.optimizers import NAMES, ByLength, Lion
from cores.training.steps import Steps

STATUS_LINES = 20
"""Status lines a stage, about."""
SHOWN = 3
"""Tensors named in an error."""


def common_arguments(run: StageRun, rows: int) -> dict[str, Any]:
    """Arguments of `TrainingArguments` for the run's stage, over so many `rows`.

    Batches are counted over all processes and accumulated; UserError if they do not divide.
    """
    config, section = run.config, getattr(run.config, run.stage)
    micro, passes = run.launch.split(section, run.stage)
    steps = section.max_steps or math.ceil(section.epochs * math.ceil(rows / section.batch_size))
    return {
        "output_dir": str(run.path),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": passes,
        "num_train_epochs": section.epochs,
        "max_steps": section.max_steps or -1,
        "learning_rate": section.learning_rate,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "optim": NAMES.get(section.optimizer, section.optimizer),
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "seed": config.seed,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": max(1, steps // STATUS_LINES),
        # A loss that is no number counts as the mean of the others where its step is left out.
        "logging_nan_inf_filter": config.faults.nonfinite == "skip",
        "save_strategy": "no",
        "report_to": "none",
        "log_level": "error",
        "disable_tqdm": True,
        # of a stream each process reads its own rows: batches sent to it must be of one width
        "accelerator_config": {"dispatch_batches": False},
        **run.launch.sharding.trainer_arguments(section.max_grad_norm, micro, passes),
    }


def train(model: Any, run: StageRun, make: Callable[..., "Lasting"], **arguments: Any) -> Any:
    """Train `model` by the trainer that `make` makes of it and `arguments`, from the run's
    checkpoint if it has one; return it with all its weights on every rank."""
    resumed, held = run.resumed, run.launch.sharding
    config = plain_model(model).config
    cached = getattr(config, "use_cache", None)  # the trainer sets it, and it would be saved
    if resumed is not None:
        load_weights(model, resumed.tensors("weights"))
    stand_in = held.stand_in(model)
    trainer = make(run, model=model, **arguments)
    with tempfile.TemporaryDirectory() as folder:
        if resumed is not None:
            progress = json.dumps(resumed.numbers["trainer"])
            Path(folder, TRAINER_STATE_NAME).write_text(progress, encoding="utf-8")
        trainer.train(resume_from_checkpoint=folder if resumed is not None else None)
    run.stepped()
    trained = held.undone(model, stand_in)
    if cached is not None:
        config.use_cache = cached
    trainer.accelerator.free_memory()
    return trained.to(run.launch.device)


class Lasting(Trainer):
    """Goes on where its run was, and ends by `Stopped` behind a checkpoint where that is told.

    Weights of a checkpoint are in the model before it is made.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self, run: StageRun, rows: int, names: list[str], unused: bool = False, **arguments: Any
    ) -> None:
        """Over so many `rows`. `names`: entries of the trainer's log that are shown. `unused`: some
        of the weights that are trained may have no gradient."""
        self.section: SFTSection | RewardSection = getattr(run.config, run.stage)
        common = common_arguments(run, rows)
        args: Any = TrainingArguments(ddp_find_unused_parameters=unused, **common)
        # No nn.DataParallel, which would spread each batch over all GPUs that the process sees, and
        # so make it as many times larger. Hiding the others by CUDA_VISIBLE_DEVICES fails once a
        # library has counted them (bitsandbytes does when it is imported).
        args._n_gpu = min(args.n_gpu, 1)
        if self.section.optimizer == "lion":
            arguments["optimizer_cls_and_kwargs"] = (Lion, {"lr": self.section.learning_rate})
        super().__init__(args=args, **arguments)
        self.run, self.held = run, run.launch.sharding
        self.held.adopt(self.accelerator)
        self.skipped = self.left_out = 0
        self.tokens = 0
        """Of this rank's forward passes since the last log line, padding among them."""
        self.sums: dict[str, Any] = {}
        """Figures beside the loss, added up over `rows` since the last log line."""
        self.remove_callback(PrinterCallback)
        self.add_callback(Steps(self, names))

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Names of the weights that decay; UserError for a pattern that fits none."""
        if not (patterns := self.section.no_decay):
            return super().get_decay_parameter_names(model)
        spared = fitting(model, patterns, f"{self.run.stage}.no_decay")
        return [name for name, _ in model.named_parameters() if name not in spared]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """`lr_factor` of the section's keys; cycles of restarts are epochs."""
        section, total = self.section, num_training_steps
        rising, cycles = warmup_steps(section.warmup, total), 1
        if rising > total:
            self.run.launch.say(
                f"note: {self.run.stage}.warmup: the rate still rises at the end, as the run has "
                f"{total} steps of {rising}"
            )
        if section.lr_schedule == "restarts":
            rows: Any = self.train_dataset
            cycles = math.ceil(total / math.ceil(len(rows) / section.batch_size))

        def factor(step: int) -> float:
            return lr_factor(step, total, rising, section.lr_schedule, section.lr_floor, cycles)

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        section, rows = self.section, cast(Any, self.train_dataset)
        if not (isinstance(section, SFTSection) and section.group_by_length):
            return super()._get_train_sampler(train_dataset)
        lengths = [len(row) for row in rows["input_ids"]]
        sampler = ByLength(lengths, section.batch_size, self.run.config.seed)
        if (resumed := self.run.resumed) is not None:  # several ranks' loaders tell it later ones
            sampler.set_epoch(int(resumed.numbers["trainer"]["epoch"] or 0))
        return sampler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """A forward and a backward pass, whose tokens are counted."""
        read = (inputs[name] for name in ("input_ids", "decoder_input_ids") if name in inputs)
        self.tokens += sum(ids.numel() for ids in read)
        return super().training_step(model, inputs, num_items_in_batch)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Done before the trainer was made, the same way under every launch."""

    def _load_rng_state(self, checkpoint: Any) -> None:
        """Nothing draws from a generator's past: see `Steps.on_step_begin`."""

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        resumed = self.run.resumed
        if resumed is not None and resumed.step:
            self.held.of_trainer(self).load_moments(resumed.parts())
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(resumed.numbers["loss_scale"])
            self.lr_scheduler.load_state_dict(resumed.numbers["schedule"])
            rates = resumed.numbers["schedule"]["_last_lr"]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        return prepared

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if math.isfinite(float(norm)):
            self.skipped = 0
            return norm
        if (scaler := self.accelerator.scaler) is not None and scaler.get_scale() >= 1:
            self.left_out += 1  # by the scaler, which halves its scale
            return norm
        self.skipped += 1
        faults = self.run.config.faults
        if faults.nonfinite == "stop" or self.skipped > faults.max_skips:
            raise UserError(self._cause(model))
        self.left_out += 1
        model.zero_grad()  # a step without gradients changes nothing
        return norm

    def _cause(self, model: Any) -> str:
        stage, step = self.run.stage, self.state.global_step + 1
        named = list(model.named_parameters())
        bad = [n for n, p in named if p.grad is not None and not p.grad.isfinite().all()]
        weights = [n for n, p in named if not p.isfinite().all()]
        what = f"bad weights ({', '.join(weights[:SHOWN])})" if weights else "sound weights"
        where = f", in the gradients of {', '.join(bad[:SHOWN])}" if bad else ""
        return (
            f"{stage}: the gradient is not finite at step {step}{where} ({len(bad)} of "
            f"{len(named)} tensors), from {what}; the step was not taken. Leave "
            "such steps out (--faults.nonfinite skip; so many in a row: --faults.max_skips) to go "
            f"on. Or lower {stage}.learning_rate, or compute in fp32 (--model.precision fp32), "
            f"{ANEW}."
        )

    def add(self, rows: int, figures: dict[str, torch.Tensor]) -> None:
        """Note figures (B,) of so many rows, for the next log line."""
        found = {"rows": rows, **{name: each.detach().sum() for name, each in figures.items()}}
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in found.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the means of the figures over the rows of all ranks."""
        if "loss" in logs and self.sums:
            ranks = gather_object([{name: float(x) for name, x in self.sums.items()}])
            sums = {name: sum(rank[name] for rank in ranks) for name in self.sums}
            logs |= {name: x / sums["rows"] for name, x in sums.items() if name != "rows"}
            self.sums = {}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        state = self.held.of_trainer(self).state(keep=self.run.launch.is_main)
        losses = gather_object([float(self._tr_loss)])
        progress = json.loads(json.dumps(asdict(self.state), sort_keys=True))
        schedule = self.lr_scheduler.state_dict()
        numbers = {
            "trainer": progress | {"log_history": []},
            "schedule": schedule | {"lr_lambdas": [None] * len(schedule["lr_lambdas"])},
            "losses": losses,
            "sums": gather_object([{name: float(x) for name, x in self.sums.items()}]),
            "logged": self._globalstep_last_logged,
            "skipped": [self.skipped, self.left_out],
            "loss_scale": scaler.state_dict() if (scaler := self.accelerator.scaler) else None,
        }
        self.run.save(self.state.global_step, State(state, numbers))
