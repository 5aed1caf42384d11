"""Stages 2 and 3 of encoder-decoders through the command line: folders, held-out rows, adapters,
ptx, going on, and what is refused."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from _chain import run_chain
from _helpers import ACCELERATE, in_process, record, rows, script
from _models import largest_difference
from _resume import goes_on_exactly
from _sided import ANSWERS, ASKED, make_t5, options
from _tiny import write_jsonl
from safetensors.torch import load_file
from test_encoder_decoder import by_hand
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from cores.models import ScalarModel, load_scalar
from cores.models.rows import Value
from cores.training.calibration import two_sided

SHORT = """--reward.batch_size 4 --reward.microbatch_size 2 --reward.learning_rate 1e-2
--reward.max_length 64 --reward.calibration_samples 8 --reward.epochs 2 --ppo.updates 2
--ppo.batch_size 4 --ppo.minibatch_size 4 --ppo.microbatch_size 2 --ppo.max_new_tokens 6
--ppo.epochs 1 --ppo.max_prompt_length 40""".split()
WRONG = ["不知道。", "No.", "Never", "no"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, and a run whose stages 1 and 2 are finished."""
    root = tmp_path_factory.mktemp("sided")
    pairs = [
        {"prompt": p, "chosen": a, "rejected": w}
        for p, a, w in zip(ASKED, ANSWERS, WRONG, strict=True)
    ]
    write_jsonl(root / "pairs.jsonl", pairs * 4)
    make_t5(root / "base")
    for stage in ("sft", "reward"):
        in_process(stage, words(root, "run"))
    return root


def words(home: Path, out: str) -> list[str]:
    """Arguments of its stages."""
    pairs = str(home / "pairs.jsonl")
    sources = ["--data.preference.path", pairs, "--data.prompts.path", pairs]
    held = ["--data.preference.test_path", pairs, "--data.prompts.test_path", pairs]
    return [*options(home / "base", home, out), *sources, *held, *SHORT]


def test_the_reward_model_learns_and_is_loaded(home: Path) -> None:
    """It tells held-out sides apart, and its folder gives the scores that stage 2 calibrated."""
    found = record(home / "run" / "reward")["metrics"]
    assert found["accuracy"] == 1
    model: Any = load_scalar(home / "run" / "reward")
    assert model.config.architectures == ["T5DecoderForSequenceClassification"]
    tokenizer = AutoTokenizer.from_pretrained(home / "run" / "reward")
    value, scores = Value(ScalarModel(model)), []
    for reply in (ANSWERS[1], WRONG[1]):
        prompt, written = tokenizer(ASKED[1]).input_ids, tokenizer(reply).input_ids
        read = two_sided([prompt + written], [len(prompt)], 0, torch.device("cpu"))
        with torch.no_grad():
            scores.append(value.score(read).item())
    assert scores[0] > scores[1] + 1


def test_what_is_finished_is_judged(home: Path, tmp_path: Path) -> None:
    """As by the stages themselves: the same accuracy, and the same loss; replies with scores."""
    more = ["--json", tmp_path / "found.json", "--data.sft.test_path", home / "rows.jsonl"]
    script("evaluate.py", [*words(home, "run"), *more, "--best-of", 2])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["accuracy"]["mean"] == record(home / "run" / "reward")["metrics"]["accuracy"]
    loss = by_hand(home / "run" / "sft")
    assert found["language"]["sft"]["loss"]["mean"] == pytest.approx(loss, abs=1e-3)
    assert found["policies"]["sft"]["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    assert all(row["sft"]["score"] is not None for row in found["samples"])


def test_stage_3_goes_on_exactly(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ptx rows and evaluations: tensors and figures are those of a run that was not stopped;
    the policy is an ordinary T5 that has moved."""
    goes_on_exactly(monkeypatch, home, lambda out: [*words(home, out), "--ppo.ptx_coef", "0.5"])
    result = record(home / "straight" / "ppo")["metrics"]
    assert result["before"]["prompts"] == result["after"]["prompts"] == 16
    assert rows(home / "straight" / "ppo" / "metrics.jsonl")[0]["rollout_logprob_gap"] < 1e-4
    model, info = AutoModelForSeq2SeqLM.from_pretrained(
        home / "straight" / "ppo", output_loading_info=True
    )
    assert not any(info.values()), info
    before = AutoModelForSeq2SeqLM.from_pretrained(home / "run" / "sft").state_dict()
    assert any(not torch.equal(before[name], w) for name, w in model.state_dict().items())
    assert load_scalar(home / "straight" / "ppo" / "critic").score.weight.abs().sum() > 0


def test_adapters(home: Path) -> None:
    """In both stages, merged; one base is reference and actor, reward model and critic."""
    copytree(home / "run" / "sft", home / "lora" / "sft")
    more = ["--reward.lora.rank", "4", "--ppo.lora.rank", "4", "--ppo.actor_learning_rate", "1e-2"]
    for stage in ("reward", "ppo"):
        in_process(stage, [*words(home, "lora"), *more])
    before, after = (
        AutoModelForSeq2SeqLM.from_pretrained(home / "lora" / stage).state_dict()
        for stage in ("sft", "ppo")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("encoder") for name in changed)
    assert any(name.startswith("decoder") for name in changed)
    assert not any("embed" in name or "shared" in name for name in changed)


@pytest.mark.parametrize(
    ("stage", "more", "says"),
    [
        ("reward", ["--reward.base", "base"], "goes without reward.base"),
        ("ppo", ["--reward.path", "{}/run/reward"], "reads more than one text"),
        ("ppo", ["--ppo.estimator", "coati"], "goes without ppo.coati.mean_over_positions"),
        ("ppo", ["--rollout.engine", "graph"], "graph cannot run here: T5ForConditionalGeneration"),
    ],
)
def test_what_they_do_not_have(
    stage: str, more: list[str], says: str, home: Path, refused: Any
) -> None:
    out = "bare" if more[0].startswith("--reward") else "run"
    if out == "bare" and not (home / "bare").exists():
        copytree(home / "run" / "sft", home / "bare" / "sft")
    more = [word.format(home) for word in more]
    assert says in refused(stage, [*words(home, out), *more], home / out)


@pytest.mark.long
def test_two_processes_do_what_one_does(home: Path) -> None:
    """All stages by accelerate launch; without dropout, whose masks are each process's own."""
    base, given = make_t5(home / "dry", dropout_rate=0.0), words(home, "none")
    for key in ("--model.path", "--output_dir"):  # the chain's own
        del given[given.index(key) : given.index(key) + 2]
    launcher = [*ACCELERATE[:-1], ACCELERATE[-1].replace("cpu.yaml", "cpu2.yaml")]
    one, two = (
        run_chain(home / name, base, given, by) for name, by in (("one", None), ("two", launcher))
    )
    for stage, most in (("sft", 1e-4), ("reward", 1e-3), ("ppo", 1e-4)):
        a, b = (load_file(chain.out / stage / "model.safetensors") for chain in (one, two))
        assert largest_difference(a, b) < most, stage
    told = [rows(chain.out / "ppo" / "metrics.jsonl") for chain in (one, two)]
    for a, b in zip(*told, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-2)
