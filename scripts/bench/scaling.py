"""docs/scaling.md's table: 7B, 13B and 70B on 8 to 256 GPUs, by the planner.

    python scripts/bench/scaling.py          writes the page's tables (see plan_error.py for one)

Nothing is measured here: all is counted, at the rates of `scripts/plan/times.py`.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.config import parse_config
from cores.memory import Case, Layout
from cores.runtime.cli import guarded
from cores.shapes import Shape, Texts, shape_from
from research.pages import fill
from scripts.plan.layouts import Plan, best_of, plan, ways
from scripts.plan.times import card_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
LLAMA = {"model_type": "llama", "vocab_size": 32000, "tie_word_embeddings": False}
NAMES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
         "num_key_value_heads")  # fmt: skip
MODELS = {
    "7B": (32, 4096, 11008, 32, 32), "13B": (40, 5120, 13824, 40, 40),
    "70B": (80, 8192, 28672, 64, 8),
}  # fmt: skip
"""Llama 2's."""
GPUS = (8, 16, 64, 256)
CARD = 80
WORDS = (
    "--model.precision bf16 --ppo.batch_size 512 --ppo.minibatch_size 256 --ppo.epochs 1 "
    "--ppo.microbatch_size 4 --ppo.max_prompt_length 256 --ppo.max_new_tokens 256"
)
"""512 replies of 256 tokens, all of them, to prompts of 256; minibatches of 256."""
KINDS = {"all weights": "none", "adapters": "bf16", "adapters, 4 bits": "4bit"}
"""What is trained, and how the frozen base of adapters is held."""


def shape_of(name: str) -> Shape:
    """Of a model of the table."""
    return shape_from({**LLAMA, **dict(zip(NAMES, MODELS[name], strict=True))}, name)


def case_of(name: str, gpus: int) -> Case:
    """All four roles of one shape."""
    shape, layout = shape_of(name), Layout(gpus, card=CARD * 1e9)
    return Case(parse_config(WORDS.split(), "", ""), shape, shape, layout, Texts(256, 256, 256))


def best(case: Case, quantization: str = "none") -> Plan | None:
    """The fastest way that fits: of all weights, or of adapters on a base held so."""
    card, nodes = card_of(CARD), -(-case.layout.world // 8)
    if quantization != "none":
        lora = dict.fromkeys(("ppo.lora.rank", "reward.lora.rank"), 16)
        case = plan("ppo", case, card, nodes, lora | {"model.quantization": quantization}).case
    return best_of(ways("ppo", case, card, nodes, others=False))


def cell(form: Plan | None, replies: int) -> list[str]:
    """Way, GB, seconds and samples a second of a plan."""
    if form is None:
        return ["does not fit", "", "", ""]
    again = form.case.config.model.gradient_checkpointing
    name = form.name + (", layers checkpointed" if again else "")
    return [name, f"{form.peak[1] / 1e9:.0f}", f"{form.total:.3g}", f"{replies / form.total:.3g}"]


def table() -> str:
    """Markdown, a line a model, what is trained and number of GPUs."""
    head = ["model", "GPUs", "way", "GB a GPU", "s a step", "replies a second"]
    lines = [head, ["---"] * len(head)]
    for name in MODELS:
        for kind, how in KINDS.items():
            for gpus in GPUS:
                case = case_of(name, gpus)
                found = cell(best(case, how), case.config.ppo.batch_size)
                lines.append([f"{name}, {kind}", str(gpus), *found])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PUBLISHED: tuple[tuple[str, str, str, dict[str, Any], int, float], ...] = (
    (
        "verl's log, PPO, Qwen2.5-0.5B, one GPU (not named), 256 replies of 276 tokens on average",
        "66.3 s: replies 17.8, reference 5.4, values 5.7, critic 16.6, actor 20.8",
        "--ppo.batch_size 256 --ppo.minibatch_size 64 --ppo.microbatch_size 2 --ppo.epochs 1 "
        "--ppo.max_prompt_length 104 --ppo.max_new_tokens 512",
        {"model_type": "qwen2", "num_hidden_layers": 24, "hidden_size": 896,
         "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
         "vocab_size": 151936, "tie_word_embeddings": True},
        1, 276,
    ),
    (
        "verl's log, PPO, gemma-2-2b, 2 GPUs (not named), 512 replies of 146 tokens",
        "136.8 s: replies 45.0, reference 11.3, values 9.7, critic 32.5, actor 38.3",
        "--ppo.batch_size 512 --ppo.minibatch_size 128 --ppo.microbatch_size 4 --ppo.epochs 1 "
        "--ppo.max_prompt_length 104 --ppo.max_new_tokens 512",
        {"model_type": "gemma2", "num_hidden_layers": 26, "hidden_size": 2304,
         "intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4,
         "head_dim": 256, "vocab_size": 256000, "tie_word_embeddings": True},
        2, 146,
    ),
    (
        "NeMo-RL 0.5, GRPO without a critic, Llama-3.1-8B, 16 H100, 2,048 rows of 1,019 tokens",
        "92.8 s, 1,581 tokens/s a GPU",
        "--ppo.batch_size 2048 --ppo.minibatch_size 512 --ppo.microbatch_size 1 --ppo.epochs 1 "
        "--ppo.max_prompt_length 128 --ppo.max_new_tokens 1024 --ppo.estimator grpo "
        "--ppo.samples_per_prompt 32 --ppo.rewards {\"f.py:f\":1}",
        {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
         "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
         "vocab_size": 128256, "tie_word_embeddings": False},
        16, 891,
    ),
    (
        "NeMo-RL 0.5, GRPO without a critic, Qwen3-32B, 32 H100, 2,048 rows of 3,251 tokens",
        "376 s, 571 tokens/s a GPU",
        "--ppo.batch_size 2048 --ppo.minibatch_size 512 --ppo.microbatch_size 1 --ppo.epochs 1 "
        "--ppo.max_prompt_length 128 --ppo.max_new_tokens 8192 --ppo.estimator grpo "
        "--ppo.samples_per_prompt 32 --ppo.rewards {\"f.py:f\":1}",
        {"model_type": "qwen3", "num_hidden_layers": 64, "hidden_size": 5120,
         "intermediate_size": 25600, "num_attention_heads": 64, "num_key_value_heads": 8,
         "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False},
        32, 3123,
    ),
    (
        "SkyRL, 7B, 8 H100, 512 prompts of Search-R1, rows of some 830 tokens, FSDP: the policy",
        "update 100 s, scoring passes 33 s",
        "--ppo.batch_size 512 --ppo.minibatch_size 256 --ppo.microbatch_size 4 --ppo.epochs 1 "
        "--ppo.max_prompt_length 330 --ppo.max_new_tokens 500 --ppo.estimator grpo "
        "--ppo.samples_per_prompt 8 --ppo.rewards {\"f.py:f\":1}",
        {"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584,
         "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
         "vocab_size": 152064, "tie_word_embeddings": False},
        8, 500,
    ),
)  # fmt: skip
"""What ran, what was published, and the same for the planner: words, config.json, GPUs of 80 GB and
the replies' mean. Prompts' lengths are assumed where nothing is published."""


def planned(words: str, numbers: dict[str, Any], gpus: int, mean: float) -> Plan | None:
    """The best way for a published setting, all weights trained."""
    config = parse_config(["--model.precision", "bf16", *words.split()], "", "")
    shape, ppo = shape_from(numbers, "config.json"), config.ppo
    texts = Texts(ppo.max_prompt_length, ppo.max_new_tokens, mean)
    case = Case(config, shape, shape, Layout(gpus, card=CARD * 1e9), texts)
    return best(case)


def beside() -> str:
    """Published runs beside the planner's figures for their settings, in Markdown."""
    lines = [["run", "published", "planned"], ["---"] * 3]
    for what, said, words, numbers, gpus, mean in PUBLISHED:
        form = planned(words, numbers, gpus, mean)
        told = "does not fit"
        if form is not None:
            parts = ", ".join(f"{k} {v:.3g}" for k, v in form.seconds.items() if v >= 0.05)
            told = f"{form.total:.3g} s ({form.name}): {parts}; {form.peak[1] / 1e9:.0f} GB a GPU"
        lines.append([what, said, told])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(text: str) -> str:
    """docs/scaling.md with its counted tables made anew."""
    return fill(text, {"ppo": table(), "published": beside()}, PAGE.name)


def main(argv: list[str]) -> None:
    """Command line."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    guarded(main)
