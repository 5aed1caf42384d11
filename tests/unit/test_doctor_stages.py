"""The doctor on data, on stages 1 and 2, and on the files of a run; its script."""

import json
from pathlib import Path
from typing import Any

import pytest
from _helpers import script
from test_doctor import CONFIG, FACTS

from cores.errors import UserError
from cores.report import RULES, Watch, examine, read_run

Row = dict[str, Any]


def split(**changes: Any) -> Row:
    """A split's counts."""
    return {"path": "a.jsonl", "read": 1000, "used": 1000, "dropped": {}, "truncated": 0} | changes


def judged(accuracy: float, longer: float, prefers: float, pairs: int = 400) -> Row:
    """Stage 2's figures."""
    told = {"accuracy": accuracy, "accuracy_longer": longer, "prefers_longer": prefers}
    return {"pairs": pairs, **told}


GOOD = {"train": split(), "test": split()}
STAGES: list[tuple[str, str, Row]] = [
    ("data_dropped", "sft", {"data": {"train": split(used=700, dropped={"too long": 300})}}),
    ("data_dropped", "ppo", {"data": {"sources": [GOOD, {"train": split(dropped={"bad": 500})}]}}),
    ("data_truncated", "sft", {"data": {"train": split(truncated=200)}}),
    ("data_leaked", "reward", {"data": {"train": split(), "test": split(trained_on=30)}}),
    ("data_repeated", "ppo", {"data": {"train": split(repeated=990)}}),
    ("rate_high", "sft", {"rows": [4.0, 2.0, 1.0, 0.9, 0.9, 3.0, 5.0]}),
    ("rate_high", "reward", {"rows": [0.69, 0.6, 0.5, 0.5, 1.5, 2.0]}),
    ("rate_low", "sft", {"rows": [4.0], "metrics": {"test_loss_before": 4.0, "test_loss": 3.97}}),
    ("sft_not_converged", "sft", {"rows": [4 * 0.93**i for i in range(20)]}),
    ("sft_overfit", "sft", {"metrics": {"test_loss_before": 2.0, "test_loss": 2.6}}),
    (
        "sft_overfit", "sft",
        {"rows": [3.0, 1.0, 0.5, 0.1, 0.1, 0.1],
         "metrics": {"test_loss_before": 3.0, "test_loss": 1.4}},
    ),
    ("reward_chance", "reward", {"metrics": judged(0.53, 0.5, 0.5)}),
    ("reward_chance", "reward", {"metrics": judged(0.54, 0.5, 0.5, 9000)}),
    ("reward_chance", "reward", {"metrics": {"rows": 400, "correlation": None}}),
    ("reward_chance", "reward", {"rows": [0.7, 0.69, 0.695] * 4}),
    (
        "reward_length", "reward",
        {"metrics": judged(0.7, 0.55, 0.9)},
    ),
    (
        "reward_length", "reward",
        {"metrics": judged(0.9, 0.9, 0.9)},
    ),
]  # fmt: skip


def write(root: Path, stage: str, sick: Row, finished: bool = True) -> None:
    """A stage's record and metrics, healthy but for `sick`."""
    folder = root / (stage if finished else f"{stage}.unfinished")
    folder.mkdir(parents=True)
    good = {"sft": {"test_loss_before": 4.0, "test_loss": 0.6}, "reward": judged(0.85, 0.5, 0.5)}
    data = sick.get("data", GOOD)
    told = {"config": CONFIG, "data": data, "metrics": sick.get("metrics", good.get(stage))}
    if not finished:
        told = {"config": CONFIG, "facts": {"data": data}, "stopped": None}
    (folder / ("stage.json" if finished else "state.json")).write_text(json.dumps(told))
    losses = sick.get("rows", [1.5, 0.9, 0.7, 0.65, 0.62, 0.61, 0.6, 0.6, 0.6, 0.6])
    rows = [{"step": 10 * i + 10, "loss": loss, "accuracy": 0.6} for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("rule", "stage", "sick"), STAGES)
def test_sick_data_and_stages(rule: str, stage: str, sick: Row, tmp_path: Path) -> None:
    """The rule that is meant, and no other."""
    write(tmp_path, stage, sick)
    assert [finding.rule for finding in examine(RULES, read_run(tmp_path))] == [rule]


def test_healthy_stages_and_few_pairs(tmp_path: Path) -> None:
    """An accuracy of a few pairs says nothing."""
    write(tmp_path, "sft", {"data": {"train": split(read=60, used=60, repeated=59)}})
    write(tmp_path, "reward", {"metrics": judged(0.5, 1.0, 1.0, 10)})
    assert examine(RULES, read_run(tmp_path)) == []


def test_what_a_row_costs_does_not_grow_with_the_run() -> None:
    """The rules are asked at every row, and a report asks them of all rows anew."""

    class Counted(list):
        read = 0

        def __getitem__(self, at: Any) -> Any:
            self.read += len(range(*at.indices(len(self)))) if isinstance(at, slice) else 1
            return super().__getitem__(at)

        def __iter__(self) -> Any:
            self.read += len(self)
            return super().__iter__()

    watch = Watch(RULES, "sft", FACTS)
    watch.rows = rows = Counted({"step": i, "loss": 1.0} for i in range(5000))
    rows.read = 0
    watch.add({"step": 5000, "loss": 1.0})
    assert rows.read < 500
    rows += [{"step": i, "loss": 3.0} for i in range(5001, 5003)]
    assert [one.rule for one in watch.look("row", 5002)] == ["rate_high"]


def call(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str]:
    """Exit status and all that scripts/doctor.py says."""
    with pytest.raises(SystemExit) as left:
        script("doctor.py", list(words))
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out + said.err


def test_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0, 1 and 2; OUT is a list; an unfinished stage is read, and of two the newer."""
    out = tmp_path / "out.json"
    write(tmp_path / "run", "sft", {})
    assert call(capsys, tmp_path / "run", "--json", out) == (0, "0 found in sft (10 rows)\n")
    assert json.loads(out.read_text()) == []
    write(tmp_path / "run", "reward", {"rows": [0.7, 0.69, 0.695] * 4}, finished=False)
    status, said = call(capsys, tmp_path / "run", "--json", out)
    assert status == 1
    assert "reward_chance (reward, step 100)" in said
    assert said.endswith("1 found in sft (10 rows), reward (12 rows, unfinished)\n")
    (found,) = json.loads(out.read_text())
    assert set(found) == {"rule", "stage", "step", "evidence", "cause", "change"}
    assert all(found[key] for key in ("rule", "evidence", "cause", "change"))
    status, said = call(capsys, tmp_path / "run", "--json", tmp_path)
    assert status == 2  # 1 would say that something was found
    assert "cannot be written (Is a directory)" in " ".join(said.split())
    for bad, why in (
        (tmp_path, "holds no stage"),
        (tmp_path / "run" / "sft", "give the one above"),
    ):
        status, said = call(capsys, bad)
        assert status == 2
        assert said.startswith("error: ")
        assert why in " ".join(said.split())


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": 1}\nnonsense\n', "metrics.jsonl:2: is no JSON"),
        ("metrics.jsonl", '{"step": 1, "loss": NaN}\n', "metrics.jsonl:1: loss is NaN"),
        ("metrics.jsonl", '{"step": 1, "loss": "x"}\n', 'metrics.jsonl:1: loss is "x"'),
        ("stage.json", "{", "stage.json: damaged"),
        ("stage.json", '{"data": []}', None),
        ("stage.json", '{"data": [1]}', "damaged (data is no object)"),
    ],
)
def test_damaged_files_are_named(file: str, text: str, said: str | None, tmp_path: Path) -> None:
    write(tmp_path, "sft", {})
    (tmp_path / "sft" / file).write_text(text)
    if said is None:
        assert read_run(tmp_path)[0].data == {}
        return
    with pytest.raises(UserError) as error:
        read_run(tmp_path)
    assert said in str(error.value)


def test_half_a_row_is_still_being_written(tmp_path: Path) -> None:
    write(tmp_path, "sft", {}, finished=False)
    with (tmp_path / "sft.unfinished" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "lo')
    assert len(read_run(tmp_path)[0].rows) == 10
