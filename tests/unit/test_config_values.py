"""Values that parse but cannot work, the docstring of every key, and the page made of them."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _config_helpers import mistake

from cores.config import Config, parse_config
from cores.config.validate import NOT_NEGATIVE, POSITIVE, POSITIVE_IF_SET, SHARES, check
from scripts.config_docs import DOCS, descriptions, document, sections

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


@pytest.mark.parametrize("key", POSITIVE + POSITIVE_IF_SET)
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_positive(key: str, value: float) -> None:
    """0 steps, rows, tokens or rates do nothing."""
    assert first_problem(key, value) == (key, f"{value} must be above 0.")


@pytest.mark.parametrize("key", NOT_NEGATIVE)
def test_not_negative(key: str) -> None:
    """0 turns these off, below 0 they mean nothing."""
    assert first_problem(key, -1) == (key, "-1 must not be below 0.")
    assert first_problem(key, 0) is None


@pytest.mark.parametrize("key", SHARES)
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_shares(key: str, value: float) -> None:
    """Between 0 and 1."""
    assert first_problem(key, value) == (key, f"{value} must be between 0 and 1.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.test_fraction", "1"], "at least 0 and below 1"),
        (["--ppo.clip", "1"], "must be below 1"),
        (["--ppo.actor_adam.beta2", "1"], "at least 0 and below 1"),
        (["--ppo.lora.dropout", "0.1"], "must be 0"),
        (["--ppo.stop_token_ids", "[-1]"], "0 or above"),
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
    assert "does not use template.system" in message


def test_system_prompt_without_roles() -> None:
    """Verbatim text has no place for it."""
    message = mistake("--template.kind", "none", "--template.system_prompt", "Serve.")
    assert message.startswith("command line: --template.system_prompt: template.kind none")


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


def test_every_number_has_a_range() -> None:
    """A new numeric key must be put in one of the lists of ranges, or among the exceptions."""
    by_hand = {
        "data.test_fraction",
        *(f"ppo.{role}_adam.{b}" for role in ("actor", "critic") for b in ("beta1", "beta2")),
        "ppo.rollout_cap",
        "ppo.dual_clip",
        "ppo.lora.dropout",  # 0 alone
        "reward.calibration_samples",
        *(f"{s}.lora.alpha" for s in ("sft", "reward", "ppo")),  # any number scales
        *(
            f"data.{s}.sources[].{key}"  # tests/unit/test_data_config.py
            for s in ("sft", "preference", "prompts")
            for key in ("weight", "limit", "prompt_tokens")
        ),
    }
    numbers = {
        f"{prefix}.{field.name}".lstrip(".")
        for prefix, cls in sections()
        for field in dataclasses.fields(cls)
        if field.type in (int, float, int | None, float | None)
    }
    assert numbers == {*POSITIVE, *NOT_NEGATIVE, *SHARES, *POSITIVE_IF_SET} | by_hand


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
    assert 60 < count < 125


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
            elif key.startswith(("template.system.", "template.user.", "template.assistant.")):
                key = f"template.*.{field.name}"
            if not dataclasses.is_dataclass(field.type):
                assert f"| `{key}` |" in text
