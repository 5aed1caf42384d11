"""Scores of stage 2 in TRL's trainers: `trl_reward`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import good, in_process, rows
from _tokenizers import chat_like
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from cores.errors import UserError
from cores.interop import trl_reward

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, finished: Path, llama, files) -> Path:
    """Stage 3 behind the finished stages, with its held-out samples."""
    out = tmp_path_factory.mktemp("interop") / "run"
    out.mkdir()
    for stage in ("sft", "reward"):
        (out / stage).symlink_to(finished / stage)
    in_process("ppo", good(llama, files, out))
    return out


def samples(run: Path) -> list[tuple[str, str, list[int], float]]:
    """Of stage 3's held-out replies: prompt, reply, the reply's ids, score."""
    tokenizer, found = AutoTokenizer.from_pretrained(run / "reward"), []
    for row in rows(run / "ppo" / "held_out_samples.jsonl"):
        before = len(tokenizer(row["prompt"], add_special_tokens=False)["input_ids"])
        for side in (row["before"], row["after"]):
            reply = tokenizer.decode(side["ids"][before:], skip_special_tokens=True)
            found.append((row["prompt"], reply, side["ids"][before:], side["score"]))
    return found


def asked(prompt: str) -> list[dict[str, str]]:
    """The message that a rendered prompt is of."""
    text = prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    return [{"role": "user", "content": text}]


def test_scores_are_those_of_stage_3(run: Path) -> None:
    """Texts as TRL has them, and messages; with the reply's ids, ended or not. The file of stage 3
    has four digits; the rest is those of its scalar model on its ids."""
    prompts, replies, ids, scores = map(list, zip(*samples(run), strict=True))
    reward = trl_reward(run / "reward", batch_size=3)
    assert reward.__name__ == "run/reward"
    told: dict[str, Any] = {"trainer_state": None, "log_metric": None}
    found = reward(prompts, replies, ids, **told)
    assert found == pytest.approx(scores, abs=6e-5)
    ended = [*ids[:-1], [*ids[-1], reward.tokenizer.eos_token_id]]
    whole = [
        [*reward.tokenizer(prompt, add_special_tokens=False)["input_ids"], *own]
        for prompt, own in zip(prompts, ended, strict=True)
    ]
    by_hand = [
        reward.model.scores(torch.tensor([row]), torch.ones(1, len(row))).item() for row in whole
    ]
    said = [[{"role": "assistant", "content": reply}] for reply in replies]
    found = reward(prompts=list(map(asked, prompts)), completions=said, completion_ids=ended)
    assert found == pytest.approx(by_hand, abs=1e-5)
    assert by_hand[:-1] == pytest.approx(scores[:-1], abs=6e-5)
    assert abs(by_hand[-1] - scores[-1]) > 1e-3


def test_texts_alone_are_ended(run: Path) -> None:
    """As rows of stage 2: the score is read at the end token, which TRL's texts lack."""
    reward = trl_reward(run / "reward")
    row = reward.row(asked(samples(run)[0][0]), "yes of course")
    assert row[-1] == reward.tokenizer.eos_token_id
    assert row[:-1] == reward.row(samples(run)[0][0], "yes of course")[:-1]
    (whole,) = reward([asked(samples(run)[0][0])], ["yes of course"])
    assert whole == pytest.approx(reward.scores([row])[0], abs=1e-6)
    assert abs(whole - reward.scores([row[:-1]])[0]) > 1e-4


def test_a_policy_with_another_tokenizer(run: Path, tmp_path: Path) -> None:
    """Its ids are refused until it is named; then its replies are texts, ended where it ended."""
    other = chat_like()
    other.save_pretrained(tmp_path)
    prompt, ids = asked(samples(run)[0][0]), other("yes of course")["input_ids"]
    with pytest.raises(UserError, match="Name the policy, and replies are read as text"):
        trl_reward(run / "reward")([prompt], ["yes of course"], [ids])
    reward = trl_reward(run / "reward", policy=tmp_path)
    for end, rest in (([other.eos_token_id], []), ([], [reward.tokenizer.eos_token_id])):
        row = reward.row(prompt, "yes of course", [*ids, *end])
        assert row + rest == reward.row(prompt, "yes of course")


def test_every_end_of_the_policy_ends_a_reply(run: Path, tmp_path: Path) -> None:
    """Its tokenizer has one, its generation_config.json names more; an empty reply has none."""
    other = chat_like()
    other.save_pretrained(tmp_path)
    ends = [other.eos_token_id, other.convert_tokens_to_ids("a")]
    GenerationConfig(eos_token_id=ends).save_pretrained(tmp_path)
    reward = trl_reward(run / "reward", policy=tmp_path)
    prompt, ids = asked(samples(run)[0][0]), other("yes of course")["input_ids"]
    for end in ends:
        assert reward.row(prompt, "yes", [*ids, end])[-1] == reward.tokenizer.eos_token_id
    for said in (ids, []):
        assert reward.row(prompt, "yes", said)[-1] != reward.tokenizer.eos_token_id
    (tmp_path / "generation_config.json").unlink()
    assert trl_reward(run / "reward", policy=tmp_path).ends == {other.eos_token_id}


def test_what_is_refused(run: Path, llama: Path) -> None:
    reward = trl_reward(run / "reward")
    prompt, reply = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    for prompts, completions, words in (
        ([prompt], [reply * 2], "a completion has 2 messages"),
        ([prompt + reply], [reply], "ends with no question"),
        ([[{"role": "user", "content": [{"type": "image"}]}]], [reply], "only texts are scored"),
    ):
        with pytest.raises(UserError, match=words):
            reward(prompts, completions)
    with pytest.raises(UserError, match="only stage 2's folder"):
        trl_reward(run / "sft")
    with pytest.raises(UserError, match=r"Give <output_dir>/reward of a finished stage 2"):
        trl_reward(llama)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_step_of_trl(name: str, run: Path, tmp_path: Path) -> None:
    """Its trainer takes the function, and logs the mean of the scores that it gives."""
    trainer_of, config_of = TRAINERS[name]
    reward, given = trl_reward(run / "reward"), []
    seen = reward.scores
    reward.scores = lambda rows: given.append(seen(rows)) or given[-1]  # type: ignore[method-assign]
    prompts = [{"prompt": asked(prompt)} for prompt, *_ in samples(run)[:4]]
    tokenizer = AutoTokenizer.from_pretrained(run / "sft")
    trainer = trainer_of(
        model=AutoModelForCausalLM.from_pretrained(run / "sft"),
        reward_funcs=[reward],
        args=config_of(
            str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_steps=1,
            max_completion_length=8, use_cpu=True, report_to=[], logging_steps=1,
            learning_rate=1e-3, bf16=False,
        ),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    (log, *_) = (row for row in trainer.state.log_history if "reward" in row)
    (scores,) = given
    assert log["rewards/run/reward/mean"] == pytest.approx(sum(scores) / 4, abs=1e-5)
    assert torch.tensor(scores).std() > 0
    assert json.dumps(log)
