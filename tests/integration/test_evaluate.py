"""`scripts/evaluate.py` on a finished tiny chain, as a user starts it; one chain for the file."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _endpoint import Server, endpoint
from _helpers import good, in_process, one_paragraph, script, tree
from _tiny import write_jsonl

MORE = [
    "--checkpoint.keep_weights", "1", "--ppo.actor_learning_rate", "0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def chain(
    tmp_path_factory: pytest.TempPathFactory, finished: Path, llama: Path, files: dict[str, Path]
) -> tuple[Path, list[str]]:
    """An output_dir with all stages finished, and the words that it was run with."""
    out = tmp_path_factory.mktemp("chain") / "run"
    shutil.copytree(finished, out)
    words = [*good(llama, files, out), *MORE]
    in_process("ppo", words)
    return out, words


Judge = Callable[..., dict[str, Any]]


@pytest.fixture
def judge(chain: tuple[Path, list[str]], tmp_path: Path) -> Judge:
    """Run the script with further words; what it wrote, and nothing else was."""

    def run(*words: Any) -> dict[str, Any]:
        out, arguments = chain
        before, to = tree(out), tmp_path / "found.json"
        script("evaluate.py", [*arguments, "--json", to, "--best-of", 1, *words])
        assert tree(out) == before
        return json.loads(to.read_text(encoding="utf-8"))

    return run


def intervals(found: Any) -> Iterator[dict[str, Any]]:
    """Every {mean, low, high} in it."""
    if isinstance(found, dict) and {"mean", "low", "high"} <= found.keys():
        yield found
    elif isinstance(found, dict | list):
        for part in found.values() if isinstance(found, dict) else found:
            yield from intervals(part)


def test_all_figures_of_a_finished_run(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that others read by name; replies that are the models' own; a table that shows them."""
    found = judge("--best-of", 2)
    for name in ("accuracy", "perplexity", "kl", "win_rate"):
        assert found[name].keys() == {"mean", "low", "high"}
    assert len(list(intervals(found))) > 40
    for one in intervals(found):
        assert one["low"] is None or one["low"] <= one["mean"] <= one["high"] or one["mean"] is None
    assert found["policies"]["sft"]["kl"]["mean"] == pytest.approx(0, abs=1e-4)
    assert found["policies"]["ppo"]["kl"] == found["kl"]
    assert found["language"]["sft"]["perplexity"] == found["perplexity"]
    pairs = found["reward_model"]
    assert sum(group["pairs"] for group in pairs["by_difference"]) == pairs["pairs"]
    assert sum(row["pairs"] for row in pairs["calibration"]["bins"]) == pairs["pairs"]
    assert [point["name"] for point in found["frontier"]] == ["sft", "step-1", "step-2", "ppo"]
    assert found["frontier"][-2]["score"] == found["frontier"][-1]["score"]  # the same weights
    assert [point["n"] for point in found["best_of_n"]] == [1, 2]
    assert found["best_of_n"][0]["score"]["mean"] <= found["best_of_n"][1]["score"]["mean"]
    printed = capsys.readouterr().out
    for words in ("accuracy on", "the longer reply wins", "ppo over sft, by score", "best of 2"):
        assert words in printed


def test_own_prompts_in_any_order(judge: Judge, tmp_path: Path) -> None:
    """A text file with a prompt a line: each with each stage's reply and score, in their order;
    the same numbers when they are asked again in another order."""
    asked = [
        "please bring a towel",
        "please bring a taxi now",
        "a lamp to room 7",
        "please bring a key",
    ]
    file = tmp_path / "mine.txt"
    file.write_text("\n".join([asked[0], "", *asked[1:]]) + "\n", encoding="utf-8")
    gate = tmp_path / "gate.py"
    gate.write_text("def taxi(text):\n    return 'no taxi' if 'taxi' in text else None\n")
    found = judge("--prompts", file, "--gate", f"{gate}:taxi")
    assert found["refused_prompts"]["mean"] == 0.25
    for name in ("base", "sft", "ppo"):
        stopped = [("taxi" in row[name]["reply"]) for row in found["samples"]]
        assert found["policies"][name]["refused"]["mean"] == sum(stopped) / 4
        assert [row[name].pop("refused") is not None for row in found["samples"]] == stopped
        del found["policies"][name]["refused"]
    del found["refused_prompts"]
    assert [row["prompt"] for row in found["samples"]] == asked
    for row in found["samples"]:
        assert row.keys() == {"prompt", "base", "sft", "ppo"}
        assert all(isinstance(row[name]["score"], float) for name in ("base", "sft", "ppo"))
    file.write_text("\n".join(asked[::-1]), encoding="utf-8")
    again = judge("--prompts", file)
    assert again["samples"] == found["samples"][::-1]
    assert {**again, "samples": []} == {**found, "samples": []}


LONG = """\
def longer(prompts, responses, rows):
    return [float(len(text)) for text in responses]
"""


def test_a_function_that_likes_long_replies_is_even_at_equal_length(
    judge: Judge, tmp_path: Path
) -> None:
    rule = tmp_path / "rule_of_length.py"
    rule.write_text(LONG, encoding="utf-8")
    prompts = [{"prompt": f"please bring a towel to room {i}"} for i in range(60)]
    file = write_jsonl(tmp_path / "prompts.jsonl", prompts)
    found = judge("--prompts", file, "--judge", f"{rule}:longer")
    by_judge = [row for row in found["comparisons"] if row["by"] == "judge"]
    assert [(row["of"], row["over"]) for row in by_judge] == [("sft", "base"), ("ppo", "sft")]
    told = [row for row in by_judge if row["length_controlled"] is not None]
    assert told
    assert all(row["length_controlled"]["mean"] == 0.5 for row in told)
    assert all(row["win_rate"] == row["longer"] or row["ties"] for row in by_judge)


def test_another_reward_model_judges(judge: Judge, chain: tuple[Path, list[str]]) -> None:
    """The run's own as the second judge says what the score says."""
    found = judge("--judge", chain[0] / "reward", "--limit", 4)
    score, second = (
        [row["win_rate"] for row in found["comparisons"] if row["by"] == by]
        for by in ("score", "judge")
    )
    assert score == second
    assert found["policies"]["ppo"]["judge"] == found["policies"]["ppo"]["score"]


def test_an_endpoint_is_asked_in_both_orders(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that always takes the first reply says nothing. Of one that fails the rest of what was
    judged is written, and prompts that were not are counted."""
    with endpoint() as server:
        found = judge("--judge", server, "--limit", 4)
        monkeypatch.setattr(Server, "fails", lambda text, times: 401)
        failed = judge("--judge", server, "--limit", 4)
    (last,) = (row for row in found["comparisons"] if row["by"] == "judge" and row["of"] == "ppo")
    assert last["ties"] == last["prompts"]
    assert last["win_rate"]["mean"] == 0.5
    assert last["not_judged"] == 0
    assert "questions got no answer" in failed["left_out"]["judge of ppo over sft"]
    assert failed["comparisons"] == [row for row in found["comparisons"] if row["by"] == "score"]


def test_rows_of_reward_bench(
    judge: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A score a subset; rows that are cut are counted and told."""
    rows = [
        {"id": str(i), "prompt": f"please bring a lamp to room {i}", "subset": "Focus",
         "chosen": ["yes of course"], "rejected": ["no", "never", "sorry no"]}
        for i in range(3)
    ]  # fmt: skip
    same = {"prompt": "a key", "subset": "Ties", "chosen": ["yes", "yes now"], "rejected": ["no"]}
    rows += [{**same, "id": "tied:1"}, {**same, "id": "ref:1", "chosen": ["yes"]}]
    file = write_jsonl(tmp_path / "bench.jsonl", rows)
    cut = judge("--pairs", file, "--limit", 4, "--reward.max_length", 12)["benchmark"]["cut"]
    assert cut > 3
    assert (
        f"{cut} replies are longer than reward.max_length: they are cut" in capsys.readouterr().out
    )
    found = judge("--pairs", file, "--limit", 4)
    assert found["benchmark"]["cut"] == 0
    assert found["benchmark"]["rows"] == 5
    assert found["benchmark"]["subsets"]["Focus"]["rows"] == 3
    assert found["benchmark"]["subsets"].keys() == {"Focus", "Ties"}


def test_ratings_in_place_of_pairs(judge: Judge, tmp_path: Path) -> None:
    """They have an error and a correlation; accuracy is left out, and why is said."""
    rows = [
        {"prompt": "please bring a lamp", "completion": "yes of course " + "now " * i, "score": i}
        for i in range(4)
    ]
    file = write_jsonl(tmp_path / "rated.jsonl", rows)
    found = judge("--pairs", file, "--reward.kind", "pointwise", "--limit", 4)
    assert found["reward_model"].keys() == {"rows", "mse", "correlation", "variance"}
    assert found["reward_model"]["variance"] == 1.25
    assert "pointwise reads no pairs" in found["left_out"]["accuracy"]


def test_what_cannot_be_judged(judge: Judge, tmp_path: Path) -> None:
    """One paragraph that says what, where and what to do."""
    empty, nothing = tmp_path / "empty.txt", tmp_path / "nothing"
    empty.write_text("\n \n", encoding="utf-8")
    rule = tmp_path / "rule_that_fails.py"
    rule.write_text("def bad(prompts, responses, rows):\n    return [1 / 0]\n", encoding="utf-8")
    cases = {
        ("--output_dir", nothing): r"nothing: no stage is finished there.*stage1_sft\.py",
        ("--prompts", empty): r"--prompts .*empty\.txt: holds no prompt; write one a line",
        ("--prompts", tmp_path / "no.txt"): r"--prompts .*no\.txt' does not exist",
        ("--pairs", tmp_path / "no.jsonl"): r"--pairs.*no\.jsonl",
        ("--judge", f"{rule}:bad"): r"--judge: .*rule_that_fails\.py:bad failed.*ZeroDivisionError",
        ("--judge", f"{rule}:worse"): r"--judge: .*'worse' does not exist",
        ("--judge", tmp_path / "none"): r"--judge: .*none",
        ("--judge", "http://127.0.0.1:9/v1"): r"--judge http.*cannot be asked.*refused",
        ("--json", tmp_path / "no" / "out.json"): r"--json .*there is no folder",
        ("--json", tmp_path): r"--json .* is a folder; name a file",
        ("--gate", "none.py:f"): r"--gate: 'none.py:f': there is no such folder and no such file",
        ("--limit", "0"): r"--limit 0: must be 2 or more",
        ("--template.system_prompt", "Be rude."): r"template\.system_prompt: .*was trained with",
    }
    for given, message in cases.items():
        with pytest.raises(ValueError, match=f"(?s){message}") as raised:
            judge(*given)
        assert "\n" not in str(raised.value)


def test_stages_that_are_not_finished_are_named(
    chain: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Stage 1 alone: its perplexity and replies without a score; stage 2 beside it: the score."""
    out, words = chain
    for stages in (["sft"], ["sft", "reward"]):
        part = tmp_path / f"{len(stages)}"
        for stage in stages:
            shutil.copytree(out / stage, part / stage)
        script("evaluate.py", [*words, "--output_dir", part, "--best-of", 1, "--limit", 4])
        found = json.loads((part / "evaluation.json").read_text(encoding="utf-8"))
        assert found["policies"].keys() == {"base", "sft"}
        assert ("score" in found["policies"]["sft"]) == ("reward" in stages)
        assert ("accuracy" in found) == ("reward" in stages)
        assert ("accuracy" in found["left_out"]) if len(stages) == 1 else "left_out" not in found
        assert "kl" not in found
        assert found["samples"][0]["sft"].keys() == {"reply", "score", "kl"}


def test_models_of_no_stage(chain: tuple[Path, list[str]], judge: Judge, tmp_path: Path) -> None:
    """Folders in the place of stages 1 and 2 are judged as the stages are; in bf16 all but alike;
    without prompts and replies where these are to be in no file of the run."""
    out, words = chain
    paths = ["--sft.path", out / "sft", "--reward.path", out / "reward"]
    hidden = ["--logging.samples", "false"]
    script("evaluate.py", [*words, "--output_dir", tmp_path / "new", *paths, *hidden])
    found = json.loads((tmp_path / "new" / "evaluation.json").read_text(encoding="utf-8"))
    own = judge("--model.precision", "bf16", *hidden)
    assert found["policies"].keys() == {"sft"}
    assert found["accuracy"]["mean"] == pytest.approx(own["accuracy"]["mean"], abs=0.2)
    both = (f["perplexity"]["mean"] for f in (found, own))
    assert next(both) == pytest.approx(next(both), rel=0.02)
    assert "scores are the reward model's own" in found["left_out"]["units of the score"]
    assert "samples" not in found
    assert "towel" not in json.dumps(found)
    assert own["samples"]  # into a file that was asked for


def test_the_script_as_a_newcomer_starts_it() -> None:
    """An error is one paragraph on stderr, and the status 1."""
    import subprocess
    import sys

    from _helpers import ROOT, environment

    words = [sys.executable, "scripts/evaluate.py", "--config", "configs/none.yaml"]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "configs/none.yaml" in one_paragraph(done.stderr)
