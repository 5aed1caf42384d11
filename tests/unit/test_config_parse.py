"""Command line and YAML to Config: precedence, places of mistakes, suggestions."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest
from _config_helpers import mistake, parse

from cores.config import Config


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a YAML file into the current folder and return its name."""
    monkeypatch.chdir(tmp_path)

    def writer(text: str, name: str = "c.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return writer


def test_no_arguments_are_the_defaults() -> None:
    """Every key has a default."""
    assert parse() == Config()


def test_file_over_default_and_command_line_over_file(write) -> None:
    """The later the closer to the user; the place of --config does not matter."""
    name = write("seed: 3\nsft:\n  epochs: 2\n  learning_rate: 2e-5\nppo: {lora: {rank: 4}}\n")
    config = parse("--config", name, "--sft.epochs", "5")
    assert (config.seed, config.sft.epochs, config.sft.learning_rate) == (3, 5.0, 2e-5)
    assert (config.ppo.lora.rank, config.ppo.lora.alpha, config.reward.lora.rank) == (4, 16.0, 0)
    assert parse("--seed=8", f"--config={name}").seed == 8
    assert parse(f"--config={name}", "--seed=8").seed == 8


def test_files_in_order(write) -> None:
    """Several --config: the last one wins, key by key."""
    one, two = write("seed: 1\nsft: {epochs: 2}\n", "1.yaml"), write("seed: 2\n", "2.yaml")
    config = parse("--config", one, "--config", two)
    assert (config.seed, config.sft.epochs) == (2, 2.0)


def test_values_keep_their_types(write) -> None:
    """Lists, nulls, text with line breaks, whole numbers where a float is meant."""
    name = write('template:\n  kind: roles\n  user: {prefix: "Q:\\n"}\nsft: {epochs: 2}\n')
    config = parse("--config", name, "--ppo.stop_token_ids", "[5, 6]", "--sft.max_steps", "null")
    assert config.template.user.prefix == "Q:\n"
    assert config.ppo.stop_token_ids == [5, 6]
    assert config.sft.max_steps is None
    assert isinstance(config.sft.epochs, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--overwrite"], True),
        (["--overwrite", "--seed", "3"], True),
        (["--seed", "3", "--overwrite"], True),
        (["--overwrite", "true"], True),
        (["--overwrite=true"], True),
        (["--overwrite", "false"], False),
        (["--overwrite=false"], False),
    ],
)
def test_overwrite_flag(words: list[str], expected: bool) -> None:
    """--overwrite alone is true, and takes a value too."""
    assert parse(*words).overwrite is expected


def test_overwrite_given_in_the_file(write) -> None:
    """The command line can take it back."""
    name = write("overwrite: true\n")
    assert parse("--config", name).overwrite is True
    assert parse("--config", name, "--overwrite", "false").overwrite is False


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("seed: 1\nsft:\n  learning_rat: 1\n", "c.yaml:3: ", "Did you mean sft.learning_rate?"),
        ("sedd: 1\n", "c.yaml:1: ", "there is no key sedd. Did you mean seed?"),
        ("sft: {warmup_ratio: 0}\n", "c.yaml:1: ", "sft.warmup_ratio was renamed to sft.warmup;"),
        ("xyzzy: 1\n", "c.yaml:1: ", "there is no key xyzzy. docs/configuration.md"),
        (
            "seed: 1\n\nsft:\n  epochs: many\n",
            "c.yaml:4: key sft.epochs: ",
            "must be a number, but is many",
        ),
        ("seed: 1.5\n", "c.yaml:1: key seed: ", "must be a whole number, but is 1.5"),
        ("seed: true\n", "c.yaml:1: key seed: ", "a whole number, but is true"),
        ("model:\n  path: 3\n", "c.yaml:2: key model.path: ", "must be text, but is 3. Put quotes"),
        ("ppo:\n  kl_kind: k4\n", "c.yaml:2: key ppo.kl_kind: ", "one of k1, k2, k3"),
        ("seed:\n", "c.yaml:1: key seed: ", "has no value"),
        ("sft:\n  epochs: null\n", "c.yaml:2: key sft.epochs: ", "has no value"),
        ("sft:\n", "c.yaml:1: key sft: ", "is a section"),
        ("sft: 3\n", "c.yaml:1: key sft: ", "is a section"),
        ("data:\n  sft:\n    - a.jsonl\n", "c.yaml:2: key data.sft: ", "is a section"),
        ("seed: 1\nseed: 2\n", "c.yaml:2: key seed ", "stands in line 1 already"),
        ("", "c.yaml: ", "must hold keys and values"),
        ("- 1\n", "c.yaml: ", "must hold keys and values"),
        ("seed: 1\nsft: [\n", "c.yaml:3: ", "not valid YAML"),
        ("seed: 1\n\tsft: 2\n", "c.yaml:2: ", "not valid YAML"),
        ("data.sft.sources[0].path: a\n", "c.yaml:1: ", "there is no key"),
        ("data.sft.sources[]: {path: a}\n", "c.yaml:1: ", "there is no key"),
        ("ppo: {clip: 0.1}\nppo.clip: 0.2\n", "c.yaml:2: key ppo.clip ", "in line 1 already"),
        ("ppo: {rewards: {1: 2}}\n", "c.yaml:1: key ppo.rewards: ", "must be text, but is 1"),
        ('output_dir: "a\\0b"\n', "c.yaml:1: key output_dir: ", "the character NUL"),
        ("sft: &a\n  lora: *a\n", "c.yaml:2: ", "there is no key sft.lora.lora"),
        ("seed: " + "[" * 5000, "c.yaml:1: ", "nest too deep"),
        ("seed: 1\n# \x07\n", "c.yaml:2: ", "the character U+0007"),
        ("seed: " + "9" * 5000, "c.yaml:1: key seed: ", "a number of 5000 digits"),
        ("seed: 010\n", "c.yaml:1: key seed: ", "a whole number, but is 010"),
        ("sft: {epochs: " + "9" * 400 + "}\n", "c.yaml:1: key sft.epochs: ", "must be finite"),
        ("sft: {<<: {epochs: 1}}\n", "c.yaml:1: ", "there is no key sft.<<"),
        ("seed: !!python/name:os.system x\n", "c.yaml:1: key seed: ", "a whole number"),
        ("? [a]\n: 1\n", "c.yaml:1: ", "there is no key a list"),
        ("config: other.yaml\n", "c.yaml:1: ", "there is no key config"),
    ],
)
def test_mistakes_in_the_file(write, text: str, place: str, said: str) -> None:
    """Each names file and line, and says what is wrong."""
    message = mistake("--config", write(text))
    assert message.startswith(place), message
    assert said in message


@pytest.mark.parametrize(
    ("words", "place", "said"),
    [
        (["--sedd", "1"], "command line: ", "Did you mean seed?"),
        (["--ppo.warmup_ratio", "0"], "command line: ", "was renamed to ppo.warmup;"),
        (["--se", "1"], "command line: ", "there is no key se."),
        (["--sft.epoch=1"], "command line: ", "Did you mean sft.epochs?"),
        (["--seed", "x"], "command line: --seed: ", "a whole number, but is x"),
        (["--seed"], "command line: ", "--seed: expected one argument"),
        (["--seed", "null"], "command line: --seed: ", "has no value"),
        (["--sft", "3"], "command line: --sft: ", "is a section"),
        (["--ppo.stop_token_ids", "1"], "command line: --ppo.stop_token_ids: ", "must be a list"),
        (["--ppo.batch_size", "40"], "c.yaml:2: key ppo.minibatch_size: ", "32 does not divide"),
        (["--ppo.minibatch_size=9"], "command line: --ppo.minibatch_size: ", "9 does not divide"),
        (["--template", '{"kind": "roles"}'], "command line: --template.kind: ", "needs a prefix"),
        (["--data.sft.sources[].path", "a"], "command line: ", "there is no key"),
        (["--data.sft.sources[0].path", "a"], "command line: ", "there is no key"),
        (["--seed+", "1"], "command line: --seed+: ", "adds to a list"),
        (["--seed", "--sft.epochs", "1"], "command line: --seed: ", "expected one argument"),
        (["--template.user.prefix", "\udcff"], "command line: --template.user.prefix: ", "0xff"),
        (["--\udcff", "1"], "command line: ", "there is no key \\udcff"),
        (["stray"], "command line: ", "there is no key stray"),
    ],
)
def test_mistakes_on_the_command_line(write, words: list[str], place: str, said: str) -> None:
    """The command line is named as the place, unless the key that is wrong stands in the file."""
    message = mistake("--config", write("ppo:\n  minibatch_size: 32\n"), *words)
    assert message.startswith(place), message
    assert said in message


GRPO = ["--ppo.estimator", "grpo"]


@pytest.mark.parametrize(
    ("text", "words", "place"),
    [
        # The culprit is on the command line: a key in a section, and one that makes another wrong.
        ("ppo:\n  clip: 0.1\n", ["--ppo.coati.r_minus_v", "false"], "command line: --ppo.coati: "),
        ("ppo:\n  clip: 0.1\n", GRPO, "key ppo.samples_per_prompt (its default): "),
        ("seed: 1\n", GRPO, "key ppo.samples_per_prompt (its default): "),
        ("ppo:\n  samples_per_prompt: 1\n", GRPO, "c.yaml:2: key ppo.samples_per_prompt: "),
        (
            "ppo:\n  samples_per_prompt: 4\n",
            [*GRPO, "--ppo.samples_per_prompt=1"],
            "command line: --ppo.samples_per_prompt: ",
        ),
        # And in the file.
        ("ppo:\n  estimator: grpo\n", [], "key ppo.samples_per_prompt (its default): "),
        ("ppo:\n  coati:\n    r_minus_v: false\n", [], "c.yaml:2: key ppo.coati: "),
        ("ppo.coati.r_minus_v: false\n", [], "c.yaml:1: key ppo.coati: "),
    ],
)
def test_a_refused_combination_is_placed_where_its_key_is(
    write, text: str, words: list[str], place: str
) -> None:
    """A key that stands nowhere is named as the default it is, not as a line of its section's."""
    message = mistake("--config", write(text), *words)
    assert message.startswith(place), message


def test_a_refused_combination_names_the_file_that_has_the_key(write) -> None:
    """Of several, the last that has it, not the last."""
    files = [
        write("ppo: {samples_per_prompt: 4}\n", "1.yaml"),
        write("ppo:\n  samples_per_prompt: 1\n", "2.yaml"),
        write("ppo: {estimator: grpo}\n", "3.yaml"),
    ]
    message = mistake(*(word for file in files for word in ("--config", file)))
    assert message.startswith("2.yaml:2: key ppo.samples_per_prompt: "), message


@pytest.mark.parametrize("words", [["--config", "no.yaml"], ["--config=no.yaml"]])
def test_missing_file(words: list[str]) -> None:
    """Named, with an example of what is expected."""
    message = mistake(*words)
    assert message.startswith("--config: there is no file no.yaml.")
    assert "configs/gpt2.yaml" in message


def test_files_that_never_end_or_are_no_configuration(tmp_path: Path) -> None:
    """Pipes, devices, folders and large files are not read."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * 2_000_000)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for file in (tmp_path / "pipe", tmp_path, tmp_path / "circle", "/dev/zero", "x" * 300, "a\0b"):
        assert mistake("--config", str(file)).startswith("--config: ")
    assert "more than 1000000 bytes" in mistake("--config", str(tmp_path / "large"))


def test_the_disk_refuses_a_configuration(write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is told."""
    name = write("seed: 1\n")

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("builtins.open", fails)
    message = mistake("--config", name)
    monkeypatch.undo()
    assert message.startswith("--config c.yaml cannot be read: Input/output error.")


def test_anchors_and_items_that_are_added(write) -> None:
    """A section written once serves twice; key+ adds to what the file has."""
    name = write("sft: {lora: &a {rank: 4}}\nppo: {lora: *a, stop_strings: [x]}\n")
    config = parse("--config", name, "--ppo.stop_strings+", "y", "--ppo.stop_strings+", "[z]")
    assert (config.ppo.lora.rank, config.ppo.stop_strings) == (4, ["x", "y", "z"])
    one, two = write("data: {sft: {sources: [{path: a, limit: 3}]}}\n"), '{"path": "b"}'
    paths = parse("--config", one, "--data.sft.sources+", two).data.sft.sources
    assert [(source.path, source.limit) for source in paths] == [("a", 3), ("b", None)]
    (source,) = parse("--config", one, "--data.sft.sources", f"[{two}]").data.sft.sources
    assert (source.path, source.limit) == ("b", None)


def test_not_text(tmp_path: Path) -> None:
    """A file in another encoding."""
    (tmp_path / "c.yaml").write_bytes(b"seed: 1 # \xff\n")
    assert "c.yaml: not UTF-8 text" in mistake("--config", str(tmp_path / "c.yaml"))
