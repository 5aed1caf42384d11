"""Parents: finished stages, checked before they are built upon."""

import json
from pathlib import Path
from typing import Any

import pytest
from _stages import config, write

from cores.config import RoleTemplate, TemplateSection
from cores.errors import UserError
from cores.runtime.fingerprint import model_files
from cores.runtime.parents import load_parents, parent_facts


def test_all_missing_parents_are_named(tmp_path: Path) -> None:
    """Invariant 30: both at once, with the scripts that make them; a folder without stage.json is
    not finished."""
    (tmp_path / "sft").mkdir()
    with pytest.raises(UserError) as error:
        load_parents(config(tmp_path), ["sft", "reward"])
    for part in (tmp_path / "sft", tmp_path / "reward", "stage1_sft.py", "stage2_rm.py"):
        assert str(part) in str(error.value)
    write(tmp_path, "sft")
    with pytest.raises(UserError) as error:
        load_parents(config(tmp_path), ["sft", "reward"])
    assert "stage1_sft.py" not in str(error.value)
    assert "stage2_rm.py" in str(error.value)


def test_parents_that_fit(tmp_path: Path) -> None:
    """Invariant 30: what stage.json then keeps of them."""
    for stage in ("sft", "reward"):
        write(tmp_path, stage, stage)
    found = load_parents(config(tmp_path), ["sft", "reward"])
    kept = parent_facts(found)
    for stage in ("sft", "reward"):
        assert found[stage].folder == tmp_path / stage
        assert kept[stage] == {
            "folder": str(tmp_path / stage),
            "files": model_files(tmp_path / stage),
        }


@pytest.mark.parametrize("damage", ["changed", "removed", "record", "no key", "no text"])
def test_a_damaged_parent_is_refused(damage: str, tmp_path: Path) -> None:
    """Invariant 30: an edited or missing file and a broken stage.json, each by its path."""
    folder = write(tmp_path, "sft")
    wrong, says = folder / "model.safetensors", "checkpoint is damaged"
    if damage == "changed":
        wrong.write_text("weightS")
    elif damage == "removed":
        wrong.unlink()
    else:
        wrong, says = folder / "stage.json", "damaged"
        text = {"record": b'{"files":', "no key": b'{"files": {}}', "no text": b"\xff\xfe\x00"}
        wrong.write_bytes(text[damage])
    with pytest.raises(UserError) as error:
        load_parents(config(tmp_path), ["sft"])
    assert str(wrong) in str(error.value)
    assert says in str(error.value)
    assert "stage1_sft.py again with --overwrite" in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"tokenizer": "u" * 64}, "tokenizer"), ({"vocab_size": 65}, "vocabulary size")],
)
def test_parents_that_do_not_fit_each_other(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """Invariant 30: a reward model with another tokenizer or vocabulary would score other text."""
    write(tmp_path, "sft")
    write(tmp_path, "reward", **change)
    with pytest.raises(UserError, match=f"its {says} .* is not that of"):
        load_parents(config(tmp_path), ["sft", "reward"])


def test_a_parent_of_a_version_with_fewer_keys(tmp_path: Path) -> None:
    """What its template did not have yet had its default."""
    folder = write(tmp_path, "sft")
    record = json.loads((folder / "stage.json").read_text())
    record["config"]["template"] = {"kind": "chat", "system": {"prefix": "", "suffix": ""}}
    (folder / "stage.json").write_text(json.dumps(record))
    assert load_parents(config(tmp_path), ["sft"])["sft"].folder == folder
    record["config"]["template"]["system"]["prefix"] = "x"
    (folder / "stage.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"template\.system: .*'prefix': 'x'"):
        load_parents(config(tmp_path), ["sft"])


def test_a_parent_of_a_version_that_knew_fewer_keys(tmp_path: Path) -> None:
    """They are as they are by default, those of a role too."""
    folder = write(tmp_path, "sft")
    record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    del record["config"]["template"]["alternate"], record["config"]["template"]["user"]["train"]
    (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")
    load_parents(config(tmp_path), ["sft"])
    with pytest.raises(UserError, match=r"template\.alternate: True here"):
        load_parents(config(tmp_path, template=TemplateSection(alternate=True)), ["sft"])


def test_a_parent_trained_with_another_template(tmp_path: Path) -> None:
    """Invariant 30: the key that differs is named."""
    write(tmp_path, "sft")
    load_parents(config(tmp_path), ["sft"])
    other = TemplateSection(kind="roles", user=RoleTemplate("User: ", "\n"))
    with pytest.raises(UserError, match=r"template\.kind: 'roles' here"):
        load_parents(config(tmp_path, template=other), ["sft"])
    other = TemplateSection(system_prompt="Be kind.")
    with pytest.raises(UserError, match=r"template\.system_prompt: 'Be kind\.' here"):
        load_parents(config(tmp_path, template=other), ["sft"])
