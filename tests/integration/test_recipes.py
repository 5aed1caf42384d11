"""Every recipe of configs/recipes: its table, its tiny base, and its rows, token by token."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from _helpers import script
from _recipe_rows import Segments
from _recipes import BASE, CASES, RECIPES, WITH_IMAGES, words, written

from scripts.recipes.bases import BASES, make

SAMPLES = ["Hello  world\n\n x ", " 水开了，😀\t请坐。", "a\r\n\u00e9<|Human|>: b<eoh>", "\x00\x7f"]


def merged(segments: list[list[Any]] | Segments) -> Segments:
    """Segments with neighbours of one flag as one."""
    runs = groupby(((text, flag) for text, flag in segments if text), key=lambda part: part[1])
    return [("".join(text for text, _ in run), flag) for flag, run in runs]


def test_table_recipes_and_page_agree() -> None:
    assert sorted(BASE) == RECIPES == sorted(CASES)
    assert set(BASE.values()) == set(BASES)
    script("recipes.py", ["--docs", "--check"])


def test_the_list_says_what_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    script("recipes.py", [])
    printed = capsys.readouterr().out
    assert "announced 1 April 2023, no weights, nothing to run" in printed
    assert all(f"{name}\n  system " in printed for name in RECIPES)


@pytest.mark.parametrize("name", sorted(BASES.keys() - WITH_IMAGES))
def test_tokenizers_give_every_text_back(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    make(name, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in SAMPLES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_a_base_is_made_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("recipes.py", ["tiny", "vicuna", tmp_path / "base"])
    assert json.loads((tmp_path / "base/config.json").read_text())["model_type"] == "llama"
    for given, told in (
        (["vicuna", tmp_path / "base"], "not an empty folder"),
        (["gptrillion", tmp_path / "other"], "there is no recipe 'gptrillion'"),
    ):
        with pytest.raises(Exception, match=told):
            script("recipes.py", ["tiny", *given])
    assert not (tmp_path / "other").exists()


def test_all_bases_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL", reason="the extra images is not installed")
    script("recipes.py", ["tiny", "--all", tmp_path / "all"])
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == RECIPES
    assert len(capsys.readouterr().out.split()) == len(RECIPES)
    for recipe in ("chatyuan", "moss", "llava_stage1"):
        again = tmp_path / recipe
        script("recipes.py", ["tiny", recipe, again])
        weights = [folder / "model.safetensors" for folder in (again, tmp_path / "all" / recipe)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), "the same at every call"


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_are_read_and_learned_by_the_original_rule(
    recipe: str, bases: Any, call: Any, tmp_path: Path
) -> None:
    case, shown = CASES[recipe], tmp_path / "shown.jsonl"
    file = written(case, tmp_path / "data")
    given = [*words(recipe, bases(recipe), file, tmp_path / "run"), *case.options]
    status, _, err = call("sft", [*given, "--data.inspect_json", str(shown)])
    assert status == 0, err
    found = [json.loads(line) for line in shown.read_text(encoding="utf-8").splitlines()]
    assert sorted(merged(row["segments"]) for row in found) == sorted(map(merged, case.expected))
    for row in found:
        at = [label == token for token, label in zip(row["ids"], row["labels"], strict=True)]
        assert all(same or label == -100 for same, label in zip(at, row["labels"], strict=True))
    if case.encoder:
        assert sorted(row["encoder"] for row in found) == sorted(case.encoder)
    assert not (tmp_path / "run").exists(), "a look at the data writes nothing else"
