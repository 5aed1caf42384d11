"""What the judge says of replies, against numbers by hand; wrong calls get one sentence."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from _models import EOS, classifier, reward_folder, sft_folder, toy_tokenizer

from cores.config import parse_config
from cores.errors import UserError
from cores.models import save_model
from cores.rollout import Rollout
from research.demo.report import Replies, Task, kl
from research.experiments import judge as judging
from research.experiments.judge import PLACES, Judged, main, summary
from scripts.evaluation.stats import Z95, Estimate
from scripts.evaluation.texts import best_of, best_of_kl, distinct, ngrams, repeats

GOLD_PROMPT = "Guest:\nCould I have more towels?\nDesk:\n"


def test_ngrams_are_of_words_in_order() -> None:
    assert ngrams("a b  c", 2) == [("a", "b"), ("b", "c")]
    assert ngrams("a", 2) == []


def test_distinct_is_over_all_texts_and_none_spans_two() -> None:
    # 1-grams a b a | a c: 3 of 5. 2-grams ab ba | ac: 3 of 3; "a a" between the texts is none.
    assert distinct(["a b a", "a c"], 1).value == 3 / 5
    assert distinct(["a b a", "a c"], 2).value == 1.0
    assert distinct(["a", ""], 2) == Estimate(0.0, 0.0, 0.0)


def test_jackknife_of_distinct_leaves_out_one_text_at_a_time() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdef", k=rng.randint(1, 6))) for _ in range(8)]
    texts.append("z z z")  # said twice, and by this text alone
    left_out = [distinct(texts[:i] + texts[i + 1 :], 2).value for i in range(9)]
    centre = sum(left_out) / 9
    half = Z95 * math.sqrt(8 / 9 * sum((x - centre) ** 2 for x in left_out))
    found = distinct(texts, 2)
    assert found.high - found.value == pytest.approx(half)


def test_repetition_is_the_same_four_words_twice() -> None:
    assert repeats("we will look into we will look into")
    assert repeats("a a a a a")  # overlapping
    assert not repeats("we will look into it we will look")
    assert not repeats("of course")


def test_best_of_takes_the_best_of_each_group() -> None:
    assert best_of([1.0, 3.0, 2.0, 9.0, 7.0, 8.0], 3) == [1, 3]
    assert best_of([2.0, 2.0, 1.0, 5.0], 2) == [0, 3]  # the first of equals
    assert best_of([4.0, 5.0], 1) == [0, 1]
    for n in (0, 2):
        with pytest.raises(ValueError, match="not groups"):
            best_of([1.0, 2.0, 3.0], n)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_of_kl_is_exact_where_no_two_replies_are_alike(n: int) -> None:
    """The best of n by rank has density n u^(n-1) on (0, 1): KL is the integral of its log."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = n * u ** (n - 1)
    assert best_of_kl(n) == pytest.approx((density * density.log()).mean().item(), abs=1e-4)


class _Table(torch.nn.Module):
    """A "model" whose next token depends on the last alone; as much of the class as `kl` reads."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.table = logits
        self.config = type("C", (), {"vocab_size": logits.shape[1]})()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        return type("Output", (), {"logits": self.table[input_ids].clone()})()


class _Tokenizer:
    pad_token_id = 3

    def __len__(self) -> int:
        return 4


def test_kl_is_of_each_reply_over_its_own_tokens() -> None:
    """Pad (id 3) has no share; the prompt's places do not count, the first reply token's does."""
    torch.manual_seed(0)
    p, q = torch.randn(4, 4), torch.randn(4, 4)
    rows = [[0, 1, 2, 0], [2, 1]]
    replies = Replies(rows, lengths=[2, 1], texts=["", ""])
    task = Task(_Tokenizer(), {}, 2)  # type: ignore[arg-type]
    found = kl(_Table(p), _Table(q), task, replies)  # type: ignore[arg-type]
    log_p, log_q = p[:, :3].log_softmax(-1), q[:, :3].log_softmax(-1)
    by_token = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert found == pytest.approx([(by_token[1] + by_token[2]).item(), by_token[2].item()])


def test_summary_has_a_half_width_for_every_figure_and_every_single_value() -> None:
    judged = Judged(
        prompts=["p", "q"],
        texts=["a b a b a b", "c d"],
        gold=[1.0, 2.0],
        score=[0.0, 1.0],
        kl=[0.5, 0.5],
        length=[6.0, 2.0],
        ended=[1.0, 0.0],
    )
    found = summary(judged)
    assert found["prompts"] == 2
    assert found["gold"] == {"mean": 1.5, "half": round(1.96 * math.sqrt(0.5 / 2), PLACES)}
    assert found["kl"] == {"mean": 0.5, "half": 0.0}
    assert found["ended"]["mean"] == found["repetition"]["mean"] == 0.5
    assert found["rows"]["repetition"] == [1.0, 0.0]
    assert found["distinct_1"]["mean"] == 4 / 8
    assert found["samples"][1] == {"prompt": "q", "reply": "c d"}


class _Engine:
    """Two replies to each prompt: the first never ends, the second does."""

    def generate(self, prompts: list[list[int]], uniform: torch.Tensor) -> Rollout:
        replies = [[21, 22] if i % 2 == 0 else [23, EOS] for i in range(len(prompts))]
        ids = torch.tensor([p + r for p, r in zip(prompts, replies, strict=True)])
        every = torch.ones_like(ids, dtype=torch.bool)
        ended = torch.tensor([i % 2 == 1 for i in range(len(prompts))])
        return Rollout(ids, every, every[:, -2:], torch.zeros(len(prompts), 2), ended)


@pytest.mark.parametrize(("better", "kept"), [(1.5, "w23"), (2.5, "w21 w22")])
def test_best_of_loses_the_missing_eos_penalty(
    better: float, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply that does not end scores higher by `better`, and the penalty is 2; the score that
    is reported has no penalty."""
    test = [{"prompt": name, "input_ids": [5, 6 + i]} for i, name in enumerate("ab")]
    data = type("Data", (), {"test": test})
    monkeypatch.setattr("cores.data.prompt_data", lambda *_: data)
    monkeypatch.setattr("cores.training.calibration.policy_engine", lambda *_: _Engine())
    scores = [better, 0.0, better + 1, 1.0]
    monkeypatch.setattr("research.demo.report.scores", lambda *_: scores)
    monkeypatch.setattr("research.demo.world.gold", lambda prompt, text: len(text))
    config = parse_config(["--config", "configs/demo.yaml"], "", "")
    sft, reward = sft_folder("gpt2"), reward_folder("gpt2")
    found = judging.judge(config, sft, sft, reward, 2)
    assert found.texts == [kept, kept]
    assert found.score == (scores[1::2] if kept == "w23" else scores[::2])
    assert found.ended == [float(kept == "w23")] * 2
    assert found.kl == [best_of_kl(2)] * 2


def test_models_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    """Before any is loaded, with the option and the folder."""
    sft, reward = sft_folder("gpt2"), reward_folder("gpt2")
    save_model(classifier("gpt2"), toy_tokenizer(), tmp_path)
    for policy, reference, scored, problem in (
        (reward, sft, reward, f"--policy {reward}: it holds a reward model"),
        (sft, reward, reward, f"--reference {reward}: it holds a reward model"),
        (sft, sft, sft, f"--reward {sft}: it holds no calibrated reward model"),
        (sft, sft, tmp_path, f"--reward {tmp_path}: it holds no calibrated reward model"),
    ):
        with pytest.raises(UserError) as caught:
            judging.judge(parse_config([], "", ""), policy, reference, scored, 1)
        assert str(caught.value).startswith(problem)
    judging.check_kinds(sft, sft, reward)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "give one of the two"),
        (["--policy", "x", "--best-of", "4"], "give one of the two"),
        (["--best-of", "0"], "1 reply or more"),
        (["--policy", "x", "--ppo.nonsense", "1"], "nonsense"),
    ],
)
def test_wrong_calls_are_refused(words: list[str], problem: str, tmp_path: Path) -> None:
    places = ["--reference", "r", "--reward", "w", "--out", str(tmp_path / "out.json")]
    with pytest.raises(UserError, match=problem):
        main([*places, *words])


def test_the_command_line_writes_what_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--best-of N samples the reference; the seed of sampling is the command line's."""
    calls = []

    def fake(*arguments: object) -> Judged:
        calls.append(arguments)
        return Judged(["p", "q"], ["a", "b"], *([[0.0, 1.0]] * 5))

    monkeypatch.setattr(judging, "judge", fake)
    out = tmp_path / "new" / "out.json"
    main(f"--best-of 4 --reference r --reward w --seed 7 --out {out}".split())
    config, policy, reference, reward, n = calls[0]
    assert (config.seed, policy, reference, reward, n) == (7, Path("r"), Path("r"), Path("w"), 4)
    assert config == parse_config(["--config", "configs/demo.yaml", "--seed", "7"], "", "")
    assert json.loads(out.read_text())["best_of"] == 4
