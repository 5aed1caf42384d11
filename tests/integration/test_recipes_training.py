"""Recipes train: stage 1 of each on its tiny base, all stages of those that have them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import FEW_STEPS, record
from _recipe_images import PICTURES
from _recipe_rows import META
from _recipes import CASES, RECIPES, words, written
from peft import AutoPeftModelForCausalLM
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from cores.config import parse_config

QUICK = """--sft.max_steps 6 --sft.batch_size 4 --sft.microbatch_size 4 --sft.warmup 0
--sft.learning_rate 0.01 --model.precision fp32""".split()
SHORT = """--model.precision fp32 --reward.warmup 0 --ppo.min_new_tokens 0
--ppo.max_prompt_length 600""".split()
PAIRS = [
    ("yes of course", "no"),
    ("好的，马上。", "不行"),
    ("at once", "never"),
    ("在这里。", "不知道"),
]
ASKED = [ask.format(n) for n in range(6) for ask in ("Is room {} free?", "{}号房间干净吗？")]


def stock(folder: Path) -> Any:
    """What stock transformers, and for an adapter peft, makes of a stage's folder."""
    if not list(folder.glob("*.safetensors")):
        return AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
    config = AutoConfig.from_pretrained(folder)
    image = hasattr(config, "vision_config")
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return (AutoModelForImageTextToText if image else auto).from_pretrained(folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_stage_1_learns_and_its_folder_loads(
    recipe: str, bases: Any, call: Any, tmp_path: Path
) -> None:
    case, out = CASES[recipe], tmp_path / "run"
    file = written(case, tmp_path / "data")
    given = [*words(recipe, bases(recipe), file, out), *case.options, *QUICK]
    status, _, err = call("sft", [*given, "--data.sft.test_path", str(file)])
    assert status == 0, err
    metrics = record(out / "sft")["metrics"]
    assert metrics["test_loss"] < metrics["test_loss_before"]
    model = stock(out / "sft")
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    tokenizer = AutoTokenizer.from_pretrained(out / "sft")
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    config = parse_config(given, "", "")
    if config.template.eos_token is not None:
        assert tokenizer.eos_token == config.template.eos_token


def belle(question: str, answer: str) -> str:
    """A whole text of BELLE's form."""
    return f"Human: \n{question}\n\nAssistant: \n{answer}"


def moss(question: str) -> str:
    """A prompt of MOSS's form."""
    said = "<|Inner Thoughts|>: None<eot>\n<|Commands|>: None<eoc>\n<|Results|>: None<eor>\n"
    return f"{META}<|Human|>: {question}<eoh>\n{said}<|MOSS|>:"


def pairs(form: Any) -> list[dict[str, Any]]:
    """Rows of stage 2: form(question, wanted reply, unwanted reply)."""
    return [form(question, *pair) for question in ASKED for pair in PAIRS]


WHOLE = {"chatglm_chat": ("--sft.prefix_tokens", "0")}
"""Options without which a recipe's stage 1 leaves an adapter that stages 2 and 3 do not read."""
CHAINS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "chatglm_chat": (
        pairs(lambda q, a, b: {"prompt": q, "chosen": a, "rejected": b}),
        [{"prompt": question} for question in ASKED],
    ),
    "chatyuan": (
        pairs(lambda q, a, b: {"source": q, "chosen": a, "rejected": b}),
        [{"source": question} for question in ASKED],
    ),
    "colossalai": (
        pairs(lambda q, a, b: {"prompt": q, "response": a, "chosen": a, "rejected": b}),
        [{"prompt": f"{question} Now."} for question in ASKED],
    ),
    "chatllama": (
        [
            {"user_input": q, "completion": reply, "score": score}
            for q in ASKED
            for a, b in PAIRS
            for reply, score in ((a, 4.5), (b, 0.0), (a + b, None))
        ],
        [{"user_input": question} for question in ASKED],
    ),
    "belle": (
        pairs(lambda q, a, b: {"chosen": belle(q, a), "rejected": belle(q, b)}),
        [{"text": belle(question, "")} for question in ASKED],
    ),
    "llava_stage2": (
        [
            {"image": f"{colour}.png", "prompt": question, "chosen": colour, "rejected": "grey"}
            for question in ASKED
            for colour in PICTURES
        ],
        [{"image": f"{colour}.png", "prompt": ask} for ask in ASKED for colour in PICTURES],
    ),
    "moss": (
        pairs(lambda q, a, b: {"prompt": moss(q), "chosen": f" {a}", "rejected": f" {b}"}),
        [{"prompt": moss(question)} for question in ASKED],
    ),
    "palm_rlhf": (
        [
            {"prompt": q, "response": reply, "rating": rating}
            for q in ASKED
            for a, b in PAIRS
            for reply, rating in ((a, 5), (b, 1), (a + b, 3))
        ],
        [{"prompt": question} for question in ASKED],
    ),
}
"""Rows of stages 2 and 3 by recipe."""


def rows_file(path: Path, rows: list[dict[str, Any]]) -> str:
    """JSONL."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("recipe", CHAINS)
def test_all_stages(recipe: str, bases: Any, call: Any, tmp_path: Path) -> None:
    """Stage 3 ends with a policy that loads, behind a reward model that was trained."""
    out, case, (second, third) = tmp_path / "run", CASES[recipe], CHAINS[recipe]
    given = words(recipe, bases(recipe), file := written(case, tmp_path / "data"), out)
    given += ["--data.preference.path", rows_file(file.parent / "second.jsonl", second)]
    given += ["--data.prompts.path", rows_file(file.parent / "third.jsonl", third)]
    given += [*case.options, *FEW_STEPS, *SHORT, *WHOLE.get(recipe, ())]
    config = parse_config(given, "", "")
    if config.reward.base is not None:
        given += ["--reward.base", str(bases(recipe))]
    for stage in ("sft", "reward", "ppo"):
        status, _, err = call(stage, given)
        assert status == 0, err
    assert record(out / "reward")["data"]["train"]["used"] > len(second) // 2
    before, after = stock(out / "sft").state_dict(), stock(out / "ppo").state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_openflamingo_learns_both_sets_in_one_step(bases: Any, call: Any, tmp_path: Path) -> None:
    """Captions beside interleaved rows, each with the weight of its loss."""
    case, folder = CASES["openflamingo"], tmp_path / "data"
    file = written(case, folder)
    captions = [{"image": f"images/{colour}.png", "caption": f"A {colour}."} for colour in PICTURES]
    laion = folder / "captions.jsonl"
    laion.write_text("".join(json.dumps(row) + "\n" for row in captions), encoding="utf-8")
    sources = [
        {"path": str(file), "image_folder": "images", "loss_weight": 1},
        {"path": str(laion), "weight": 2, "loss_weight": 0.2},
    ]
    given = words("openflamingo", bases("openflamingo"), file, tmp_path / "run")
    at = given.index("--data.sft.path")
    given[at : at + 2] = ["--data.sft.path", "null", "--data.sft.sources", json.dumps(sources)]
    more = ["--data.sft.image_folder", "null", *case.options, *QUICK]
    status, _, err = call("sft", [*given, *more])
    assert status == 0, err
    metrics = record(tmp_path / "run" / "sft")["metrics"]
    assert metrics["test_loss"] < metrics["test_loss_before"]
