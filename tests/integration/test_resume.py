"""A run that was stopped and goes on ends as one that was not: bit for bit, on a CPU.

Weights, optimizer states and metrics, in every stage; of stage 3 with every estimator and what else
has a state.
"""

import json
from pathlib import Path

import pytest
from _helpers import good, in_process, record, tree
from _resume import apart, checkpoint, metrics, until
from _tiny import write_jsonl

ADAPTERS = ["--{}.lora.rank", "4", "--{}.lora.alpha", "8"]
PPO = "--ppo.updates 4 --ppo.actor_learning_rate 1e-3".split()
CRITIC = ["--ppo.critic_learning_rate", "1e-3"]
CASES: dict[str, tuple[str, int, list[int], list[str]]] = {
    "sft": ("sft", 6, [2, 4], []),
    "sft-lines-apart": (
        "sft",
        43,
        [1, 5],
        ["--sft.max_steps", "43", "--checkpoint.every_steps", "20"],
    ),
    "sft-lora": ("sft", 6, [3], ADAPTERS),
    "sft-adafactor-by-length": (
        "sft",
        8,
        [2, 7],
        "--sft.optimizer adafactor --sft.group_by_length true --sft.lr_schedule restarts "
        "--sft.lr_floor .1 --sft.warmup 2 --sft.max_steps 8".split(),
    ),
    "sft-streams": (
        "sft",
        6,
        [2, 5],
        "--data.sft.path null --data.sft.streaming true --data.sft.weigh tokens "
        "--data.overlap 4 --sft.max_length 16".split(),
    ),
    "sft-lion": ("sft", 6, [1, 3], ["--sft.optimizer", "lion", "--sft.weight_decay", "0.1"]),
    "sft-8bit": ("sft", 6, [3], ["--sft.optimizer", "paged_adamw_8bit"]),
    "reward": ("reward", 6, [1, 3], []),
    "reward-lora": ("reward", 6, [3], ADAPTERS),
    "gae": ("ppo", 4, [1, 3], [*CRITIC, "--ppo.kl_target", "0.01", "--ppo.lr_schedule", "cosine"]),
    "warmup-ptx": (
        "ppo",
        4,
        [1, 2],
        [*CRITIC, "--ppo.critic_warmup", "1", "--ppo.ptx_coef", "0.5"],
    ),
    "lora": ("ppo", 4, [2], ADAPTERS),
    "grpo": ("ppo", 4, [2], ["--ppo.estimator", "grpo", "--ppo.samples_per_prompt", "2"]),
    "rloo": ("ppo", 4, [2], ["--ppo.estimator", "rloo", "--ppo.samples_per_prompt", "2"]),
    "reinforce_pp": ("ppo", 4, [2], ["--ppo.estimator", "reinforce_pp"]),
    "coati": ("ppo", 4, [2], ["--ppo.estimator", "coati", "--ppo.coati.same_prompts", "false"]),
}
"""Stage, its steps, where it is stopped, options."""


def options(case: str) -> tuple[str, int, list[int], list[str]]:
    stage, steps, stops, words = CASES[case]
    more = (
        PPO if stage == "ppo" else [f"--{stage}.max_steps", "6", f"--{stage}.learning_rate", "1e-2"]
    )
    words = [*more, "--checkpoint.every_minutes", "null", *[w.format(stage) for w in words]]
    return stage, steps, stops, words


def workplace(root: Path, parents: Path) -> Path:
    """An output_dir with the parents' stages, by links."""
    root.mkdir()
    for stage in ("sft", "reward"):
        (root / stage).symlink_to(parents / stage)
    return root


def streams(root: Path) -> list[str]:
    """Two sources of texts, with losses of their own."""
    texts = [[{"text": f"{word} {i} " * 9} for i in range(5)] for word in ("room", "bring a")]
    paths = [str(write_jsonl(root / f"{n}.jsonl", texts[n])) for n in (0, 1)]
    items = [{"path": path, "weight": n, "loss_weight": n} for n, path in enumerate(paths, 1)]
    return ["--data.join", " ", "--data.sft.sources", json.dumps(items)]


@pytest.mark.parametrize("case", list(CASES))
def test_stopped_and_resumed_is_uninterrupted(
    case: str, tmp_path: Path, parents: Path, llama: Path, files: dict[str, Path], monkeypatch
) -> None:
    """Both stop behind the last step, where the optimizer's states are still there; then both
    finish, with the same files."""
    stage, steps, stops, more = options(case)
    outs = [workplace(tmp_path / name, parents) for name in ("whole", "parts")]
    for out in outs:
        if stage != "ppo":
            (out / stage).unlink()
        if stage == "sft":
            (out / "reward").unlink()
    more = [*more, *streams(tmp_path)] if case == "sft-streams" else more
    words = [[*good(llama, files, out), *more] for out in outs]
    until(monkeypatch, stage, words[0], steps)
    for stop in [*stops, steps]:
        until(monkeypatch, stage, words[1], stop)
    unfinished = [out / f"{stage}.unfinished" for out in outs]
    assert apart(*(checkpoint(out, stage, steps) for out in outs)) == []
    assert metrics(unfinished[0]) == metrics(unfinished[1])
    assert len(metrics(unfinished[0])) >= min(steps, 20)
    for arguments in words:
        in_process(stage, arguments)
    one, other = (tree(out / stage) for out in outs)
    told = {"stage.json", "README.md", "metrics.jsonl", "log.txt"}
    assert {k: v for k, v in one.items() if k not in told} == {
        k: v for k, v in other.items() if k not in told
    }
    assert record(outs[0] / stage)["metrics"].keys() == record(outs[1] / stage)["metrics"].keys()
    assert not any((out / f"{stage}.unfinished").exists() for out in outs)
    text = (outs[1] / stage / "log.txt").read_text()
    assert f"resuming {stage} at step {stops[0]} of {steps}" in text
