"""Several sources with weights: exact shares, whole passes, held-out rows of each, counts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from _data_helpers import CHAT, NONE, ROLES, config, write_jsonl
from _tokenizers import chat_like, gpt2_like
from hypothesis import given
from hypothesis import strategies as st

from cores.config.data import SourceSection, WeightedSource
from cores.config.schema import Config
from cores.data import StageData, preference_data, prompt_data, sft_data
from cores.data.mixture import held_out, interleave, mix, shares, tokens_in
from cores.errors import UserError


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1, 1], 10, [5, 5]),
        ([1, 1, 1], 10, [4, 3, 3]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([2, 1], 10, [7, 3]),  # 6.67 and 3.33
        ([1, 99], 10, [0, 10]),
        ([0.3, 0.1], 2, [2, 0]),  # 1.5 and 0.5: a tie, though not between the binary numbers
        ([0.5], 7, [7]),
    ],
)
def test_shares_by_hand(weights: list[float], total: int, expected: list[int]) -> None:
    assert shares(weights, total) == expected


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.integers(1, 5000))
def test_shares_are_exact_up_to_rounding(weights: list[float], total: int) -> None:
    counts = shares(weights, total)
    assert sum(counts) == total
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - weight / sum(weights) * total) < 1 + 1e-6


def test_rows_are_repeated_in_whole_passes() -> None:
    parts = [[{"i": (p, i)} for i in range(n)] for p, n in enumerate((4, 30))]
    rows, mixed = mix(parts, [2, 1], seed=0)
    assert list(map(len, mixed)) == [23, 11]
    times = Counter(row["i"] for row in rows)
    few, many = ([times[p, i] for i in range(n)] for p, n in enumerate((4, 30)))
    assert sorted(few) == [5, 6, 6, 6], "5 passes and 3 others"
    assert sorted(many) == [0] * 19 + [1] * 11
    again, other = mix(parts, [2, 1], seed=0)[0], mix(parts, [2, 1], seed=1)[0]
    assert rows == again
    assert rows != other
    assert {row["i"][0] for row in rows[:8]} == {0, 1}, "shuffled"
    natural, _ = mix(parts, [4, 30], seed=3)
    assert sorted(row["i"] for row in natural) == sorted(row["i"] for part in parts for row in part)


def test_weights_by_tokens() -> None:
    """Rows of 2 and of 30 tokens, 60 each: halves are 60 tokens, whatever the number of rows; three
    quarters are a pass and half of another, to within half a row."""
    short = [{"input_ids": [i] * 2, "labels": [0] * 2} for i in range(30)]
    long = [{"chosen_ids": [i] * 20, "rejected_ids": [i] * 10} for i in range(2)]
    _, even = mix([short, long], [1, 1], seed=0, tokens=True)
    assert [len(part) for part in even] == [30, 2]
    rows, uneven = mix([short, long], [3, 1], seed=0, tokens=True)
    assert [tokens_in(part) for part in uneven] == [90, 30]
    assert sorted(Counter(row["input_ids"][0] for row in uneven[0]).values()) == [1] * 15 + [2] * 15
    assert len(rows) == 46
    again, _ = mix([short, long], [3, 1], seed=0, tokens=True)
    assert rows == again != mix([short, long], [3, 1], seed=1, tokens=True)[0]
    assert rows[:45] != uneven[0], "shuffled"
    _, near = mix([short, long], [5, 3], seed=0, tokens=True)  # 75 and 45 tokens
    assert [tokens_in(part) for part in near] == [74, 30]


def test_tokens_of_rows() -> None:
    """Of every kind of row, what the model reads."""
    assert tokens_in([{"input_ids": [1, 2], "labels": [1, 2]}, {"ids": [3], "score": 1.0}]) == 3
    assert tokens_in([{"chosen_ids": [1, 2], "rejected_ids": [1], "prompt_length": 1}]) == 3
    assert tokens_in([{"encoder_ids": [1, 2], "input_ids": [1, 2], "labels": [4, 5, 6]}]) == 5


def test_the_report_of_tokens(tmp_path: Path) -> None:
    """Says of each source rows and tokens, and the share of tokens."""
    made = mixture(tmp_path)
    section = replace(made.data.preference, weigh="tokens")
    made = replace(made, data=replace(made.data, preference=section))
    data = preference_data(made, gpt2_like())
    found = data.report.to_json()["sources"]
    total = sum(source["tokens"] for source in found)
    for source, weight in zip(found, (0.5, 0.3, 0.2), strict=True):
        assert source["share"] == source["tokens"] / total == pytest.approx(weight, abs=0.02)
    first = found[0]
    said = f"weight 0.5: {first['rows']} rows, {first['tokens']} tokens, {first['share']:.2%} of"
    assert said in data.report.lines()[0]
    by_rows = preference_data(mixture(tmp_path), gpt2_like()).report.to_json()["sources"]
    assert "tokens" not in by_rows[0]


def test_interleaved() -> None:
    parts = [[{"i": i} for i in part] for part in ([1, 2, 3], [], [7])]
    assert [row["i"] for row in interleave(parts)] == [1, 7, 2, 3]


def mixture(tmp_path: Path, fraction: float = 0.0, seed: int = 0) -> Config:
    """An instruction set, transcripts of which two are bad, and a set with held-out rows."""
    plain = [
        {"instruction": f"A{i}", "output": "x", "chosen": "a", "rejected": "b"} for i in range(30)
    ]
    talks = [
        {"prompt": f"\n\nHuman: B{i}\n\nAssistant:", "chosen": " a", "rejected": " b" if i else ""}
        for i in range(20)
    ]
    third = [{"prompt": f"C{i}", "chosen": "a", "rejected": "b"} for i in range(10)]
    held = [{"prompt": f"D{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    paths = [
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("plain", plain), ("talks", talks), ("third", third), ("held", held))
    ]
    section = SourceSection(
        sources=[
            WeightedSource(path=paths[0], weight=0.5),
            WeightedSource(path=paths[1], weight=0.3, transcripts=True),
            WeightedSource(path=paths[2], weight=0.2, test_path=paths[3]),
        ]
    )
    made = config(None, ROLES, test_fraction=fraction)
    data = replace(made.data, sft=section, preference=section, prompts=section)
    return replace(made, data=data, seed=seed)


def first_letters(data: StageData) -> Counter[str]:
    texts = [row["prompt"].removeprefix("User: ") for row in data.train]
    return Counter(text[0] for text in texts)


def test_a_mixture_through_the_stages(tmp_path: Path) -> None:
    made = mixture(tmp_path)
    data = prompt_data(made, gpt2_like())
    assert first_letters(data) == {"A": 30, "B": 18, "C": 12}
    assert [row["prompt"][6:8] for row in data.test] == ["D0", "D1", "D2"]
    assert len(preference_data(made, gpt2_like()).train) == 59, "an empty reply is dropped"
    assert len(sft_data(made, gpt2_like()).train) == 60
    assert prompt_data(made, gpt2_like()).train == data.train
    assert prompt_data(replace(made, seed=1), gpt2_like()).train != data.train


def test_held_out_rows_of_each_source(tmp_path: Path) -> None:
    data = prompt_data(mixture(tmp_path, 0.3), gpt2_like())
    names = [row["prompt"].split()[1] for row in data.test]
    kept = {row["prompt"].split()[1] for row in data.train}
    assert len(names) == len(set(names)), "none is repeated"
    assert not set(names) & kept
    assert {name[0] for name in names[:3]} == {"A", "B", "D"}
    expected = {f"{p}{i}" for p, n in (("A", 30), ("B", 20)) for i in range(n)}
    expected = {name for name in expected if held_out(name, 0.3)}
    assert set(names) == expected | {"D0", "D1", "D2"}


def test_counts_of_each_source(tmp_path: Path) -> None:
    report = preference_data(mixture(tmp_path), gpt2_like()).report
    entries = report.to_json()["sources"]
    assert [(e["weight"], e["rows"]) for e in entries] == [(0.5, 29), (0.3, 18), (0.2, 12)]
    assert [e["share"] for e in entries] == [29 / 59, 18 / 59, 12 / 59]
    assert entries[1]["train"]["dropped"] == {"empty reply": 1}
    assert entries[2]["test"]["used"] == 3
    lines = report.lines()
    assert len(lines) == 4
    assert "; weight 0.3: 18 rows, 30.51% of all" in lines[1]


def test_mistakes_name_the_source(tmp_path: Path) -> None:
    made = mixture(tmp_path)
    for change, said in [
        ({"path": str(tmp_path / "no.jsonl")}, "data.sft.sources[1].path"),
        ({"format": "text"}, "data.sft.sources[1].path"),
        ({"transcripts": True, "format": "instruction", "path": str(tmp_path / "plain.jsonl")},
         "data.sft.sources[1]: no row"),
    ]:  # fmt: skip
        sources = list(made.data.sft.sources)
        sources[1] = replace(sources[1], **change)  # type: ignore[arg-type]
        sft = replace(made.data.sft, sources=sources)
        with pytest.raises(UserError) as caught:
            sft_data(replace(made, data=replace(made.data, sft=sft)), gpt2_like())
        assert str(caught.value).startswith(said)


def test_a_weight_that_gives_no_row(tmp_path: Path) -> None:
    """A source that would be left out silently is an error in every stage; one row is enough."""
    made = mixture(tmp_path)
    sources = list(made.data.sft.sources)
    for weight in (0.001, 0.03):  # of 60 rows in all, or 59
        sources[1] = replace(sources[1], weight=weight)
        section = replace(made.data.sft, sources=sources)
        data = replace(made.data, sft=section, preference=section, prompts=section)
        changed = replace(made, data=data)
        for key, build in (
            ("sft", sft_data), ("preference", preference_data), ("prompts", prompt_data)
        ):  # fmt: skip
            if weight == 0.03:
                assert build(changed, gpt2_like()).report.to_json()["sources"][1]["rows"] > 0
                continue
            with pytest.raises(UserError) as caught:
                build(changed, gpt2_like())
            message = str(caught.value)
            assert message.startswith(f"data.{key}.sources[1].weight: 0.001 of 0.701 in all")
            assert sources[1].path in message
            assert "Raise the weight" in message


TEXTS = ["今天天气很好，请问你好吗？今天天气很好。", "你好", "a towel to room 12, please bring it"]


@pytest.mark.parametrize("template", [CHAT, ROLES, NONE], ids=["chat", "roles", "none"])
def test_the_beginning_of_a_text_is_a_prompt(tmp_path: Path, template: object) -> None:
    """Ids of the prompt begin the text's ids (invariant 25) under every template, end with a whole
    character, and leave something to write."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text, "label": 1} for text in TEXTS])
    tokenizer = chat_like()
    whole = {t: tokenizer(t)["input_ids"] for t in TEXTS}
    for tokens in range(1, 12):
        made = config(path, template, source={"prompt_tokens": tokens})  # type: ignore[arg-type]
        rows = [row["input_ids"] for row in sft_data(made, tokenizer).train]
        assert rows == [[*whole[t], tokenizer.eos_token_id] for t in TEXTS]
        data = prompt_data(made, tokenizer)
        kept = [t for t in TEXTS if any(t.startswith(row["prompt"]) for row in data.train)]
        for text, row in zip(kept, data.train, strict=True):
            n = len(row["input_ids"])
            assert row["input_ids"] == whole[text][:n]
            assert tokens <= n <= tokens + 3
            assert n < len(whole[text])
            assert "\ufffd" not in row["prompt"]
            assert text.startswith(row["prompt"])
        lost = len(TEXTS) - len(kept)
        assert lost == sum(data.report.train.dropped.values())
        if lost:
            assert set(data.report.train.dropped) == {"text not longer than prompt_tokens"}
    assert lost == 1
