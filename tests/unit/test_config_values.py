"""Values that parse but cannot work, the docstring of every key, and the page made of them."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _config_helpers import mistake, parse

from cores.config import Config, parse_config, plain
from cores.config.help import descriptions
from cores.config.template import ROLES
from cores.config.validate import check
from scripts.config_docs import DOCS, SCHEMA, document, schema, sections

ROOT = Path(__file__).resolve().parents[2]


def replaced(config: Any, key: str, value: Any) -> Any:
    """`config` with another value at a dotted key."""
    name, _, rest = key.partition(".")
    inner = replaced(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})


def first_problem(key: str, value: Any) -> tuple[str, str] | None:
    """What is said first of the default configuration with another value at `key`."""
    return next(check(replaced(Config(), key, value)), None)


def test_the_defaults_are_possible() -> None:
    """Nothing to say of them."""
    assert list(check(Config())) == []


NUMBERS = {
    f"{prefix}.{field.name}".lstrip("."): field
    for prefix, cls in sections()
    for field in dataclasses.fields(cls)
    if "[]" not in prefix and field.type in (int, float, int | None, float | None)
}


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_range(key: str) -> None:
    """Also one that says none: never below 0, never more than libraries or fp32 can hold."""
    for value in (-1, -0.5, math.nan, math.inf, -math.inf, 2**64, 1e31, 1e-31):
        found = first_problem(key, value)
        assert found is not None, value
        assert found[0] == key
        assert " must be " in found[1]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ppo.clip", 0, "0 must be above 0 and below 1."),
        ("sft.batch_size", 0, "0 must be above 0."),
        ("sft.batch_size", 2**31, "2147483648 must be at most 2147483647."),
        ("sft.learning_rate", 1.5, "1.5 must be above 0 and at most 1."),
        ("ppo.gamma", 1.1, "1.1 must be at least 0 and at most 1."),
        ("ppo.kl_horizon", math.inf, "inf must be finite and above 0."),
        ("sft.lora.alpha", -3.0, "-3.0 must be above 0."),
        ("sft.lora.rank", 10**9, "1000000000 must be at least 0 and at most 16384."),
        ("seed", 2**32, "4294967296 must be at least 0 and at most 4294967295."),
        ("data.sft.limit", 2**63, "9.223372036854776e+18 must be at most 2147483647."),
        ("ppo.kl_coef", 1e-40, "1e-40 must be 0 or within 1e-30 and 1e+30, as fp32 computes."),
        ("reward.calibration_samples", 1, "1 must be at least 2."),
    ],
)
def test_what_is_said_of_a_number(key: str, value: float, said: str) -> None:
    """The bounds of the key itself."""
    assert first_problem(key, value) == (key, said)


@pytest.mark.parametrize("key", ["seed", "ppo.gamma", "ppo.lam", "ppo.kl_coef", "sft.lora.rank"])
def test_zero_where_it_means_something(key: str) -> None:
    assert first_problem(key, 0) is None


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_options_of_adapters_without_adapters(stage: str) -> None:
    """Whoever sets them believes that he trains adapters."""
    message = mistake(f"--{stage}.lora.alpha", "32")
    assert message.startswith(f"command line: --{stage}.lora.alpha: has no effect")
    assert parse(f"--{stage}.lora.alpha", "32", f"--{stage}.lora.rank", "4")


@pytest.mark.parametrize(
    "key", ["output_dir", "model.path", "data.sft.path", "data.prompts.test_path"]
)
def test_paths_that_cannot_be(key: str) -> None:
    """Empty, of a user who is not there, with a byte that is no UTF-8, with NUL."""
    for value in ("", " ", "~no_such_user_here/a", "a\udcffb", "a\0b"):
        message = mistake(f"--{key}", value)
        assert message.startswith(f"command line: --{key}: "), message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.test_fraction", "1"], "at least 0 and below 1"),
        (["--ppo.clip", "1"], "above 0 and below 1"),
        (["--ppo.actor_adam.beta2", "1"], "at least 0 and below 1"),
        (["--ppo.lora.dropout", "0.1"], "must be 0"),
        (["--ppo.stop_token_ids", "[-1]"], "at least 0"),
        (["--reward.calibration_samples", "1"], "at least 2"),
        (["--ppo.minibatch_size", "48"], "does not divide ppo.batch_size 128"),
        (["--template.kind", "roles"], "needs a prefix or suffix"),
    ],
)
def test_combinations(words: list[str], said: str) -> None:
    """Each names its key and what to do."""
    message = mistake(*words)
    assert message.startswith(f"command line: {words[0]}: ")
    assert said in message


@pytest.mark.parametrize("kind", ["chat", "none"])
def test_role_texts_without_roles(kind: str) -> None:
    """Texts around turns would be ignored silently."""
    message = mistake("--template.kind", kind, "--template.user.prefix", "Q: ")
    assert "does not use template.user" in message


def test_system_prompt_without_roles() -> None:
    """Verbatim text has no place for it."""
    message = mistake("--template.kind", "none", "--template.system_prompt", "Serve.")
    assert message.startswith("command line: --template.system_prompt: has no effect")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Known before anything is trained, and named as a package to install."""
    monkeypatch.setattr("cores.config.validate.find_spec", lambda _: None)
    assert parse_config([], "stage.py", "A stage.").logging.trackers == []
    message = mistake("--logging.trackers", f'["{name}"]')
    assert message.startswith("command line: --logging.trackers: ")
    assert f"pip install {name}" in message


def test_a_tracker_that_does_not_exist() -> None:
    """The choices are named."""
    message = mistake("--logging.trackers", '["tensorbord"]')
    assert "logging.trackers" in message
    assert "tensorboard" in message


@pytest.mark.parametrize("cls", dict.fromkeys(c for _, c in sections()), ids=lambda c: c.__name__)
def test_every_field_has_a_docstring(cls: Any) -> None:
    """They are the help, and docs/configuration.md."""
    said = descriptions(cls)
    missing = [f.name for f in dataclasses.fields(cls) if not said.get(f.name, "").endswith(".")]
    assert missing == []
    assert cls.__doc__
    assert cls.__dataclass_params__.frozen


def test_about_a_hundred_keys() -> None:
    """More would be more than one can know. A section that occurs twice is known once."""
    count = sum(
        not dataclasses.is_dataclass(field.type)
        for section in {c for _, c in sections()}
        for field in dataclasses.fields(section)
    )
    assert 60 < count < 200


def test_page_is_up_to_date() -> None:
    """docs/configuration.md is what scripts/config_docs.py would write."""
    assert DOCS.read_text(encoding="utf-8") == document(), "run python scripts/config_docs.py"


def test_page_check(tmp_path: Path) -> None:
    """--check exits with 0 for the page as it is, and with 1 and a remedy for another."""
    script = ROOT / "scripts" / "config_docs.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    copy = tmp_path / "scripts" / "config_docs.py"
    copy.parent.mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "cores").symlink_to(ROOT / "cores")
    copy.write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "docs" / "configuration.md").write_text("old\n", encoding="utf-8")
    command = [sys.executable, str(copy), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "run python scripts/config_docs.py" in done.stderr


def test_schema_is_up_to_date_and_tells_right_from_wrong() -> None:
    """configs/schema.json is what scripts/config_docs.py would write; every file that we ship is
    right by it, and what the parser refuses is wrong."""
    kept = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert {k: v for k, v in kept.items() if k != "$schema"} == schema()
    jsonschema = pytest.importorskip("jsonschema", reason="it comes with no package of ours")
    check = jsonschema.Draft202012Validator(schema())
    for file in (ROOT / "configs").rglob("*.yaml"):
        if file.parent.name != "accelerate":
            whole = plain(parse_config(["--config", str(file)], "x", ""))
            assert [e.message for e in check.iter_errors(whole)] == []
    for wrong in (
        {"sed": 1}, {"seed": -1}, {"seed": "x"}, {"seed": 1.5}, {"ppo": {"clip": 0}},
        {"ppo": {"estimator": "x"}}, {"ppo": None}, {"sft": {"lora": {"ranks": 1}}},
        {"data": {"sft": {"sources": [{"weight": 0}]}}}, {"ppo": {"rewards": {"model": "x"}}},
    ):  # fmt: skip
        assert not check.is_valid(wrong), wrong
    assert check.is_valid({"reward": {"max_steps": None}, "ppo": {"rewards": {"a.py:f": 2}}})


def test_page_lists_every_key() -> None:
    """By its full name, or with a star for sections that share a form."""
    text = document()
    shared = ("data.sft.", "data.preference.", "data.prompts.")
    for prefix, cls in sections():
        for field in dataclasses.fields(cls):
            key = f"{prefix}.{field.name}".lstrip(".")
            if ".sources[]." in key:
                key = f"*.sources[].{field.name}"
            elif key.startswith(shared):
                key = f"data.*.{field.name}"
            elif "_adam." in key:
                key = f"ppo.*.{field.name}"
            elif ".lora." in key:
                key = f"*.lora.{field.name}"
            elif key.startswith(tuple(f"template.{role}." for role in ROLES)):
                key = f"template.*.{field.name}"
            if not dataclasses.is_dataclass(field.type):
                assert f"| `{key}` |" in text
