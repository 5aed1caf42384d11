"""The model card of a finished stage: README.md in its folder, in the form of the hub."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

WORK = {
    "sft": "A language model, fine-tuned on demonstrations (stage 1 of 3)",
    "reward": "A reward model: one number for a reply to a prompt (stage 2 of 3)",
    "ppo": "A language model, trained by PPO against a reward (stage 3 of 3)",
}
TASK = {"reward": "text-classification"}
TAGS = {"sft": ["sft"], "reward": ["reward-model"], "ppo": ["rlhf", "ppo"]}
HEAD = re.compile(r"(?ms)\A\ufeff?---[ \t]*\n(.*?)^---[ \t]*$")
"""The block of YAML that a card of the hub begins with."""
FIGURES = {
    "test_loss_before": "held-out loss before, nats a token",
    "test_loss": "held-out loss, nats a token",
    "pairs": "held-out pairs",
    "accuracy": "of them ordered rightly",
    "accuracy_longer": "by the longer reply, for comparison",
    "correlation": "correlation with held-out ratings",
    "updates": "updates",
}
"""Of `metrics` in stage.json, what a card shows."""
LIMITS = {
    "sft": "It imitates its demonstrations, their mistakes included. Nothing here measures whether "
    "what it says is true or harmless.",
    "reward": "It tells what its pairs tell, by people or by rules, and may be fooled by length or "
    "manner; beyond texts like its own it was not tried. Scores are in standard deviations of the "
    "stage-1 model's replies and mean nothing beside another model's.",
    "ppo": "It was made to please its reward, and pleases it more than it would a person. Nothing "
    "here measures whether what it says is true or harmless.",
}


def card(record: dict[str, Any]) -> str:
    """README.md of the stage that stage.json, `record`, tells."""
    stage, config = record["stage"], record["config"]
    base = next((p for p in record.get("parents", {}).values() if "hub" in p), None)
    head: dict[str, Any] = {"library_name": "transformers"}
    head["pipeline_tag"] = TASK.get(stage, "text-generation")
    head["tags"] = ["tristage", *TAGS[stage]]
    if base is not None:
        head["base_model"] = base["hub"]
    own = Path(config["model"]["path"]).expanduser() / "README.md"
    found = license_in(own.read_text("utf-8", errors="replace")) if own.is_file() else None
    if found is not None:
        head["license"] = found
    top = "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())
    parts = [
        f"---\n{top}---",
        f"# {Path(config['output_dir']).name}/{stage}\n\n{WORK[stage]}.",
        f"## From\n\n{_lines(_parents(record, found))}",
        f"## Data\n\n{_lines(_data(record))}",
        f"## Figures\n\n{_lines(_figures(record.get('metrics', {})))}",
        f"## Limits\n\n{LIMITS[stage]}",
        f"## Use\n\n{_use(record)}",
        "Configuration, versions and the sha256 of every file: `stage.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def license_in(text: str) -> str | None:
    """The licence that a card's head names; None if it names none, or several."""
    head = HEAD.match(text)
    try:
        told = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return None
    named = told.get("license") if isinstance(told, dict) else None
    if isinstance(named, list) and len(named) == 1:
        (named,) = named
    return named if isinstance(named, str) else None


def _lines(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "- none"


def _parents(record: dict[str, Any], license: str | None) -> Iterator[str]:
    for name, facts in record.get("parents", {}).items():
        yield f"{name}: `{facts.get('hub') or facts['folder']}`"
    told = license or "not told here; its own card has it"
    yield f"model of stage 1: `{record['config']['model']['path']}`, licence: {told}"


def _data(record: dict[str, Any]) -> Iterator[str]:
    data = record.get("data", {})
    for source in data.get("sources", [data]):
        for name in ("train", "test"):
            if split := source.get(name):
                counts = f"{split['used']:,} of {split['read']:,} rows"
                yield f"{name}: `{split['path']}`, {counts}"
    yield "licences: those of the sources, which this program does not know"


def _figures(metrics: dict[str, Any]) -> Iterator[str]:
    for key, words in FIGURES.items():
        if isinstance(value := metrics.get(key), int | float):
            yield f"{words}: {value:.4g}"
    for when in ("before", "after"):
        found = metrics.get(when) or {}
        if found.get("score") is not None:
            yield (
                f"{when}: score {found['score']:+.3f} ± "
                f"{found.get('score_interval', math.inf):.3f}, KL "
                f"{found['kl']:.2f} nats a reply, {found['length']:.1f} tokens, on "
                f"{found['prompts']} held-out prompts (95% intervals)"
            )


def _use(record: dict[str, Any]) -> str:
    if record["stage"] != "reward":
        return (
            "An ordinary folder of transformers. Ids that no reply may hold are in "
            "`suppress_tokens` of generation_config.json, which vLLM and llama.cpp do not read; "
            "the pad token that stage 1 adds has the mean logit there, less than one part in the "
            "vocabulary's size."
        )
    if record["config"]["template"]["kind"] == "chat":
        named = (
            "Named as a string (`reward_funcs=[FOLDER]`) the folder is right as far as the chat "
            "template ends a reply with the end token; where it writes more behind it, as ChatML a "
            "line break, TRL reads the score there, a token late."
        )
    else:
        named = (
            "Named as a string (`reward_funcs=[FOLDER]`) the folder is wrong: TRL joins the texts "
            "of prompt and reply, which lack the end token, and reads the score before it."
        )
    mean = record.get("reward_mean", 0.0)
    return (
        "The score of a row is the logit at its end token, less `reward_mean` of config.json "
        f"({mean:.4f}). In TRL's GRPO and RLOO: `from cores.interop import trl_reward`, then "
        f"`reward_funcs=[trl_reward(FOLDER)]`. {named}"
    )
