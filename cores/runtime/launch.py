"""What every stage does first: quiet libraries, one process group, seeds."""

import hashlib
import logging
import os
import platform
import socket
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import reduce, set_seed
from huggingface_hub import constants
from torch import Tensor

from cores.config import Config, PPOSection, RewardSection, SFTSection, plain
from cores.errors import ElsewhereError, NoRoomError, UserError, out_of_memory
from cores.files import changes
from cores.runtime.checks import check_launch, check_steps, option
from cores.runtime.fingerprint import versions
from cores.runtime.machines import MACHINES
from cores.runtime.ranks import WAITING, WATCH
from cores.sharding import ASKED, FSDP, HALVES, Whole, deepspeed_asked, fsdp_asked, sharding

T = TypeVar("T")
SUMMED = 2**28
"""Bytes that GPUs of several machines add up to show their speed; CPUs a sixteenth."""


@cache
def _hosts(world: int) -> Any:
    """The process group over which hosts talk, None where there is one process."""
    distributed = torch.distributed
    if world == 1 or not distributed.is_initialized():
        return None
    gloo = distributed.get_backend() == "gloo"
    return distributed.group.WORLD if gloo else distributed.new_group(backend="gloo")


@dataclass(frozen=True)
class Launch:
    """The processes of this run as seen from one of them."""

    rank: int
    world: int
    device: torch.device
    precision: str

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this process reads for its machine, whose disk may be its own."""
        return int(os.environ.get("LOCAL_RANK", self.rank)) == 0

    @property
    def sharding(self) -> Whole:
        """How models lie on the processes; a new one, which remembers what it prepares."""
        return sharding(self.precision, self.device.type == "cpu")

    def autocast(self) -> torch.autocast:
        """Compute in half precision where configured."""
        half = HALVES.get(self.precision)
        return torch.autocast(self.device.type, half, enabled=half is not None)

    @property
    def half(self) -> torch.dtype | None:
        """The type of such compute; None: fp32 alone."""
        return HALVES.get(self.precision)

    def say(self, text: str) -> None:
        """Print a line once, however many processes there are."""
        if self.is_main:
            print(text, flush=True)

    def once(self, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action` on the main process alone."""
        if self.is_main:
            action(*arguments)

    def agree(self, *values: int) -> list[int]:
        """The largest of each value over all ranks: every rank calls it, and every rank learns.

        By way of the hosts, so that no device is waited for.
        """
        if self.world == 1 or (group := _hosts(self.world)) is None:
            return list(values)
        both = torch.tensor(values, dtype=torch.int64)
        with WATCH.doing(WAITING):
            torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX, group=group)
        return both.tolist()

    def shared(self, value: Any) -> Any:
        """The main process's value, on every rank."""
        if (group := _hosts(self.world)) is None:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=group)
        return box[0]

    def alike(self, facts: dict[str, Any]) -> None:
        """UserError on every rank if another machine read other `facts` (JSON values) of models and
        data than the main process did."""
        if not MACHINES.several:
            return
        host, main = self.shared((socket.gethostname(), facts))

        def check() -> None:
            lines = [line for name in facts for line in changes(main[name], facts[name], name)]
            if lines and self.is_local_main:  # the others hash nothing
                raise UserError(
                    f"{socket.gethostname()} does not read what {host} does: "
                    f"{'; '.join(lines[:3])}. Copy the files there, or use a disk that both see."
                )

        self.together(check)

    def together(self, action: Callable[[], T], memory: bool = False) -> T:
        """What `action` returns here. If it raises UserError on any rank, every rank ends, rather
        than wait for the one that did. `memory`: no rank waits for another behind its first
        allocation in it, and all raise NoRoomError where memory runs out on any.
        """
        short = ""
        try:
            result = action()
        except UserError as error:
            self.agree(self.world + self.rank + 1)
            error.everywhere = True
            raise
        except RuntimeError as error:
            if not (memory and out_of_memory(error)):
                raise
            short = str(error).splitlines()[0]
        # Behind it: the error holds the tensors of the pass that failed.
        (failed,) = self.agree(self.rank + 1 if short else 0)
        if failed > self.world:  # a rank that ends outweighs one that can go on with less
            raise ElsewhereError(f"rank {failed - self.world - 1} failed.")
        if failed:
            raise NoRoomError(short or f"rank {failed - 1} has none left")
        return result

    def share(self, batch_size: int, key: str) -> int:
        """Rows of one process of a batch over all; UserError if they do not divide."""
        if batch_size % self.world:
            raise UserError(
                f"{key}: {batch_size} rows do not divide over {self.world} processes; choose a "
                f"multiple of {self.world}."
            )
        return batch_size // self.world

    def split(self, section: SFTSection | RewardSection, key: str) -> tuple[int, int]:
        """Rows of a forward pass on one process, and forward passes of a step.

        UserError naming `key` if batch_size does not divide over processes and micro-batches.
        """
        own = self.share(section.batch_size, f"{key}.batch_size")
        micro = min(section.microbatch_size, own)
        if own % micro:
            raise UserError(
                f"{key}.microbatch_size: {micro} does not divide the {own} rows of a process "
                f"({key}.batch_size {section.batch_size} over {self.world}); choose a divisor."
            )
        return micro, own // micro


def launch(config: Config) -> Launch:
    """Join the process group, silence libraries, and seed those that draw numbers of their own.

    What we draw ourselves does not depend on that: see `cores.draws`.
    """
    quiet()
    check_launch(ASKED, torch.cuda.device_count(), option("config_file"))
    # accelerate's default under ZeRO-3 is to shard models while they are loaded: ours are whole.
    os.environ.setdefault("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false")
    # It would refuse the complete settings that the stages make of the file's inline keys.
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    gpu, precision = torch.cuda.is_available(), config.model.precision
    if precision == "bf16" and gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("model.precision: this GPU does not compute in bf16; set it to fp16.")
    if precision == "fp16" and not gpu:
        raise UserError("model.precision: fp16 is for GPUs, and torch sees none; set it to fp32.")
    # cuDNN attention gives NaN gradients for masked rows of some lengths (64, 192, ...) on Hopper:
    # pytorch issue 196678, torch 2.11. The other kernels do not.
    torch.backends.cuda.enable_cudnn_sdp(False)
    MACHINES.meet(_facts(config), Path(config.output_dir).expanduser().absolute())
    state = _join()
    os.environ.pop(FSDP, None)
    set_seed(config.seed)
    run = Launch(state.process_index, state.num_processes, state.device, config.model.precision)
    if deepspeed_asked() or fsdp_asked() or run.world > 1:
        where = "CPU" if run.device.type == "cpu" else "GPU"
        told = f"{run.world} process{'es' * (run.world > 1)} on {where}, {run.sharding.name}"
        if MACHINES.several:
            told += f"; {len(MACHINES.hosts)} machines ({', '.join(MACHINES.hosts)}), {_speed(run)}"
        run.say(told)
    if config.faults.nonfinite == "skip":
        run.sharding.check_skips()
    return run


def check_batches(
    section: SFTSection | RewardSection | PPOSection, launch: Launch, key: str
) -> None:
    """UserError if the stage's batches do not divide over the processes, before any data is read.

    Also if the launch clips gradients otherwise than the section does.
    """
    if isinstance(section, PPOSection):
        samples = section.samples_per_prompt
        per_prompt = f" / {key}.samples_per_prompt" if samples > 1 else ""
        launch.share(section.batch_size // samples, f"{key}.batch_size{per_prompt}")
        launch.share(section.minibatch_size, f"{key}.minibatch_size")
    else:
        launch.split(section, key)
    check_steps(section, key, ASKED)


def quiet() -> None:
    """Keep progress bars, advice and warnings of the libraries off the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # trl reports its use to the hub from a thread: nobody asked for it, and offline it lingers.
    # The variable is read when huggingface_hub is imported, which is before this.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    constants.HF_HUB_DISABLE_TELEMETRY = True
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)


def _facts(config: Config) -> dict[str, Any]:
    """What must be the same on every machine before the process group is made."""
    root, program = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        program.update(path.read_bytes())
    return {
        "stage": Path(sys.argv[0]).name,
        "versions": {"python": platform.python_version(), **versions()},
        f"the program in {root}": program.hexdigest(),
        "device": "GPU" if torch.cuda.is_available() else "CPU",
        "launch": {k: v for k, v in ASKED.items() if k.startswith("ACCELERATE_")},
        "configuration": plain(config),
    }


def _speed(run: Launch) -> str:
    """How fast the machines add up numbers, in words."""
    size = SUMMED if run.device.type == "cuda" else SUMMED >> 4
    numbers = torch.zeros(size >> 2, device=run.device)
    for _ in range(2):  # the first one makes connections
        began = time.monotonic()
        torch.distributed.all_reduce(numbers)
        numbers.sum().item()  # it is there
    seconds = time.monotonic() - began
    return f"which add up {size >> 20} MiB in {seconds:.3f} s ({size / seconds / 1e9:.2f} GB/s)"


def _join() -> PartialState:
    """The process group: NCCL on GPUs, gloo on CPUs.

    Told `cpu=True`, accelerate drops DeepSpeed, so under DeepSpeed it is told the backend alone.
    """
    if torch.cuda.is_available():
        return PartialState()
    asked, several = deepspeed_asked(), int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=not asked, backend="gloo" if several or asked else None)


def over_ranks(sums: dict[str, Tensor], world: int) -> dict[str, Tensor]:
    """Sums over ranks (largest of `_max`), on the device."""
    names = sorted(sums)
    if world == 1:
        return {name: sums[name] for name in names}
    own = torch.stack([sums[name] for name in names])
    total, largest = reduce(own, reduction="sum"), own.clone()
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return {name: (largest if name.endswith("_max") else total)[i] for i, name in enumerate(names)}
