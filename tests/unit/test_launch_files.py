"""configs/accelerate/*.yaml, and what is said of files that do not fit, read by accelerate."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from cores.config import Config, PPOSection, SFTSection
from cores.errors import UserError
from cores.runtime import checks
from cores.runtime import launch as launch_module
from cores.runtime.checks import check_launch
from cores.runtime.cli import guarded
from cores.runtime.launch import Launch, check_batches
from cores.runtime.stop import STOP

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "accelerate"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
NO_CONFIG = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "main_process_port": 0}


@pytest.fixture(autouse=True)
def deepspeed_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read settings only: they need no DeepSpeed."""
    monkeypatch.setattr(checks, "find_spec", lambda name: name)


@pytest.fixture
def launched_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives this process a parent with such a command line."""

    def set_words(*words: str) -> None:
        parent = SimpleNamespace(cmdline=lambda: list(words))
        monkeypatch.setattr(checks.psutil, "Process", lambda pid: parent)

    return set_words


def environment_of(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `accelerate launch --config_file FILE` puts into the environment of a rank."""
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]})
    more = ["--main_process_ip", "127.0.0.1"] if file.name.startswith("nodes") else []
    words = ["--config_file", str(file), *more, "stage1_sft.py"]
    args, defaults, precise = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:  # as launch_command does
        fields = [*defaults.deepspeed_config, *["mixed_precision"] * precise]
        args.deepspeed_fields_from_accelerate_config = ",".join(fields)
        env = prepare_deepspeed_cmd_env(args)[1]
    elif args.multi_gpu or args.use_fsdp or args.use_megatron_lm:
        env = prepare_multi_gpu_env(args)
    else:
        return prepare_simple_launcher_cmd_env(args)[1]
    count, machines = args.nproc_per_node, int(getattr(args, "nnodes", 1) or 1)
    world = str(int(count) * machines)  # as torch's agent does
    sizes = {"LOCAL_WORLD_SIZE": count, "WORLD_SIZE": world, "GROUP_WORLD_SIZE": str(machines)}
    return env | sizes


def test_the_files_are_there() -> None:
    names = "cpu cpu2 ddp fsdp2 gpu nodes_cpu nodes_ddp nodes_zero3 zero1 zero2 zero3 zero3_offload"
    names = names.split()
    assert [f"{name}.yaml" for name in names] == FILES


@pytest.mark.parametrize("name", FILES)
def test_file_is_read_without_questions(name: str, monkeypatch, caplog) -> None:
    """No unknown key, at the top or for DeepSpeed, and no default that accelerate warns of."""
    config = load_config_from_file(str(FOLDER / name))
    known = vars(launch_command_parser().parse_args(["stage1_sft.py"]))
    assert {*config.deepspeed_config, *config.fsdp_config} <= set(known)
    with caplog.at_level(logging.WARNING):
        environment_of(FOLDER / name, monkeypatch)
    assert caplog.records == []


@pytest.mark.parametrize("name", FILES)
def test_file_says_how_it_is_used(name: str) -> None:
    """The command of the comment is that of this file."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    command = f"accelerate launch --quiet --config_file configs/accelerate/{name} "
    own = "--machine_rank 0 --main_process_ip 10.0.0.1 " if name.startswith("nodes") else ""
    assert f"{command}{own}stage1_sft" in text


@pytest.mark.parametrize("name", FILES)
def test_file_fits_its_machine(name: str, monkeypatch) -> None:
    """Two GPUs do for all; no GPU does for the CPU's and those of shards, not the GPU's."""
    env = environment_of(FOLDER / name, monkeypatch)
    check_launch(env, 2, name)
    if name in ("gpu.yaml", "ddp.yaml", "nodes_ddp.yaml"):
        with pytest.raises(
            UserError, match=rf"^{name}: . process.* but torch sees none here\. Use "
        ):
            check_launch(env, 0, name)
    else:
        check_launch(env, 0, name)


def test_processes_and_stages_of_the_files(monkeypatch) -> None:
    """What each is for: processes, ZeRO stage, where weights and optimizer are."""
    found = {}
    for name in FILES:
        env = environment_of(FOLDER / name, monkeypatch)
        keys = ("ZERO_STAGE", "OFFLOAD_PARAM_DEVICE", "OFFLOAD_OPTIMIZER_DEVICE", "ZERO3_INIT")
        sharding = tuple(env.get(f"ACCELERATE_DEEPSPEED_{key}") for key in keys)
        found[name.removesuffix(".yaml")] = (env.get("WORLD_SIZE", "1"), *sharding)
    plain = (None, None, None, None)
    assert found == {
        "cpu": ("1", *plain), "gpu": ("1", *plain), "cpu2": ("2", *plain), "ddp": ("2", *plain),
        "fsdp2": ("2", *plain),
        "zero1": ("2", "1", "none", "none", "false"), "zero2": ("2", "2", "none", "none", "false"),
        "zero3": ("2", "3", "none", "none", "false"),
        "zero3_offload": ("2", "3", "cpu", "cpu", "false"),
        "nodes_cpu": ("2", *plain), "nodes_ddp": ("4", *plain),
        "nodes_zero3": ("4", "3", "none", "none", "false"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("num_processes: 4", "num_processes: 5"), "5, which does not divide over num_machines 2"),
        (("MULTI_GPU", '"NO"'), r"num_machines is 2, but .* starts on one\. Use .*nodes_ddp\.yaml"),
    ],
)
def test_machines_that_are_not_there(change: tuple[str, str], says: str, tmp_path, monkeypatch):
    """accelerate would start fewer processes, or on each machine a run of its own, without a
    word."""
    file = tmp_path / "nodes.yaml"
    text = (FOLDER / "nodes_ddp.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace(*change), "utf-8")
    env = environment_of(file, monkeypatch)
    with pytest.raises(UserError, match=says):
        check_launch(env, 8, str(file))


def test_cpu_files_hide_gpus(monkeypatch) -> None:
    """On a machine with GPUs as well: before torch is imported, or by the launcher."""
    assert environment_of(FOLDER / "cpu2.yaml", monkeypatch)["CUDA_VISIBLE_DEVICES"] == "-1,-1"
    assert torch.cuda._parse_visible_devices() == list(range(64))
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1,-1"
    assert torch.cuda._parse_visible_devices() == []
    seen = []
    env = environment_of(FOLDER / "cpu.yaml", monkeypatch)
    monkeypatch.setattr(os, "environ", {**env, "CUDA_VISIBLE_DEVICES": "0,1"})
    ends: list[int] = []  # it would end this process, watch its signals and free its children
    monkeypatch.setattr("cores.runtime.cli._leave", lambda board, status: ends.append(status))
    monkeypatch.setattr("cores.runtime.cli.free_children", lambda: None)
    monkeypatch.setattr(STOP, "watch", lambda launched: None)
    screens = sys.stdout, sys.stderr
    guarded(lambda argv: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    sys.stdout, sys.stderr = screens
    assert ends == [0]
    assert seen == [""]


@pytest.mark.parametrize(("name", "gpus"), [("cpu.yaml", 0), ("gpu.yaml", 0), ("gpu.yaml", 2)])
@pytest.mark.parametrize("option", [(), ("--num_processes", "2"), ("--num-processes=2",)])
def test_more_processes_than_started(
    name, gpus, option, launched_with, tmp_path: Path, monkeypatch
) -> None:
    """A file of one process, asked for two by itself or on the command line, ran one."""
    file = tmp_path / name
    text = (FOLDER / name).read_text(encoding="utf-8")
    file.write_text(text if option else text.replace("processes: 1", "processes: 2"), "utf-8")
    env = environment_of(file, monkeypatch)
    launched_with("accelerate", "launch", *option, "stage1_sft.py")
    remedy = r"ddp\.yaml \(GPUs\)" if gpus else r"cpu2\.yaml \(CPU\)"
    said = f"num_processes is 2, but .* starts 1. Use configs/accelerate/{remedy} with num_proc"
    with pytest.raises(UserError, match=said):
        check_launch(env, gpus, str(file))


@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp2.yaml", "zero2.yaml", "zero3.yaml"])
def test_as_many_processes_as_started(name: str, launched_with, tmp_path, monkeypatch) -> None:
    """num_processes is all that is changed; the command line overrules the file."""
    file = tmp_path / name
    text = (FOLDER / name).read_text(encoding="utf-8")
    file.write_text(text.replace("num_processes: 2", "num_processes: 8"), "utf-8")
    env = environment_of(file, monkeypatch)
    assert env["WORLD_SIZE"] == "8"
    check_launch(env, 8, str(file))
    launched_with("accelerate", "launch", "--num_processes", "4", "stage1_sft.py")
    check_launch({**env, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 8, str(file))


@pytest.mark.parametrize("content", [None, b"\xff", b"a: [", b"[1]", b"num_processes: many"])
def test_file_that_cannot_be_read(content: bytes | None, launched_with, tmp_path) -> None:
    """accelerate has read it: no check of ours, and no other launcher's option is taken for one."""
    file = tmp_path / "launch.yaml"
    if content is not None:
        file.write_bytes(content)
    check_launch({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "true"}, 0, str(file))
    launched_with("other", "--num_processes", "2")
    check_launch({}, 0, None)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "processes": ({"distributed_type": "MULTI_GPU", "num_processes": 4},
        "4 processes, but this machine shows 2 GPUs, .* Set num_processes to 2"),
    "zero processes": ({"distributed_type": "DEEPSPEED", "num_processes": 4},
        "4 processes, but this machine shows 2 GPUs"),
    "fsdp": ({"distributed_type": "FSDP", "num_processes": 2},
        "fsdp_version 1 is not supported, torch's FSDP2 is. Set fsdp_version to 2, .*fsdp2.yaml"),
    **{f"fsdp {key}": ({"distributed_type": "FSDP", "num_processes": 2,
        "fsdp_config": {"fsdp_version": 2, f"fsdp_{key}": value}},
        f"fsdp_{key} {value} is not used: {why}.*Remove it")
       for key, value, why in (
           ("reshard_after_forward", "false", "weights are shards again"),
           ("activation_checkpointing", "true", "it is --model.gradient_checkpointing"),
           ("auto_wrap_policy", "SIZE_BASED_WRAP", "a unit is a layer"),
           ("transformer_layer_cls_to_wrap", "GPT2Block", "layers are found"))},
    "megatron": ({"distributed_type": "MEGATRON_LM", "num_processes": 2},
        "Megatron-LM is not supported"),
    "fp16": ({"distributed_type": "NO", "mixed_precision": "fp16"},
        'mixed_precision fp16 .* Set mixed_precision to "no"'),
    "bf16": ({"distributed_type": "DEEPSPEED", "num_processes": 2, "mixed_precision": "bf16"},
        "mixed_precision bf16 .* --model.precision bf16"),
    "dynamo": ({"distributed_type": "MULTI_GPU", "num_processes": 2,
        "dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "remove dynamo_config"),
    "init": ({"distributed_type": "DEEPSPEED", "num_processes": 2,
        "deepspeed_config": {"zero_stage": 3, "zero3_init_flag": True}},
        "Set zero3_init_flag to false"),
    "accumulation": ({"distributed_type": "DEEPSPEED", "num_processes": 2,
        "deepspeed_config": {"zero_stage": 2, "gradient_accumulation_steps": 4}},
        "gradient_accumulation_steps 4 is not used: .*Remove it"),
    "accumulation text": ({"distributed_type": "DEEPSPEED", "num_processes": 2,
        "deepspeed_config": {"zero_stage": 2, "gradient_accumulation_steps": "x"}},
        "gradient_accumulation_steps x is not used"),
    "zero stage": ({"distributed_type": "DEEPSPEED", "num_processes": 2,
        "deepspeed_config": {"zero_stage": 4}}, "zero_stage 4 is none of 0, 1, 2 and 3"),
    "no deepspeed file": ({"distributed_type": "DEEPSPEED", "num_processes": 2,
        "deepspeed_config": {"deepspeed_config_file": "/nowhere.json"}},
        "/nowhere.json cannot be read as JSON"),
    "both": ({"distributed_type": "DEEPSPEED", "num_processes": 2,
        "deepspeed_config": {"deepspeed_config_file": "/nowhere.json", "zero_stage": 2}},
        "zero_stage beside deepspeed_config_file"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_file_that_would_not_be_obeyed(case: str, tmp_path: Path, monkeypatch) -> None:
    """Refused with the key and the remedy."""
    content, said = WRONG[case]
    file = tmp_path / "launch.yaml"
    file.write_text(yaml.safe_dump({**NO_CONFIG, **content}), encoding="utf-8")
    env = environment_of(file, monkeypatch)
    with pytest.raises(UserError, match=said) as error:
        check_launch(env, 2, str(file))
    assert case == "no deepspeed file" or str(error.value).startswith(f"{file}: ")


def test_batches_over_processes(monkeypatch) -> None:
    """Invariant 21: refused with the key, by itself: nothing has been read."""
    two = Launch(0, 2, torch.device("cpu"), "fp32")
    check_batches(SFTSection(batch_size=8, microbatch_size=4), two, "sft")
    check_batches(SFTSection(batch_size=8, microbatch_size=16), two, "sft")
    with pytest.raises(UserError, match=r"^sft.batch_size: 5 rows do not divide over 2 processes"):
        check_batches(SFTSection(batch_size=5), two, "sft")
    with pytest.raises(UserError, match=r"^sft.microbatch_size: 3 does not divide the 4 rows"):
        check_batches(SFTSection(batch_size=8, microbatch_size=3), two, "sft")
    with pytest.raises(UserError, match=r"^ppo.minibatch_size: 1 rows do not divide"):
        check_batches(PPOSection(batch_size=8, minibatch_size=1), two, "ppo")
    asked = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_CLIPPING": "0.5"}
    monkeypatch.setattr(launch_module, "ASKED", asked)
    with pytest.raises(UserError, match=r"gradient_clipping 0\.5 .*: ppo\.max_grad_norm is 1\.0"):
        check_batches(PPOSection(), two, "ppo")


def test_launch_checks_first(monkeypatch) -> None:
    """Before a process group is joined."""
    monkeypatch.setattr(launch_module, "ASKED", {"ACCELERATE_USE_FSDP": "true"})
    monkeypatch.setattr(launch_module, "_join", lambda: pytest.fail("too late"))
    with pytest.raises(UserError, match="fsdp_version 1 is not supported"):
        launch_module.launch(Config())
