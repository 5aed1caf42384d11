"""The keys of the sources: lists of them in YAML and on the command line, and what cannot be."""

from pathlib import Path

import pytest
from _config_helpers import mistake, parse

from cores.config.data import WeightedSource

TWO = """data:
  sft:
    sources:
      - path: a.jsonl
        weight: 2
      - {path: b, limit: 3}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write c.yaml into the current folder."""
    monkeypatch.chdir(tmp_path)

    def writer(text: str) -> str:
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        return "c.yaml"

    return writer


@pytest.mark.parametrize("flag", ["--data.sft.sources.weight", "--data.preference.sources.path"])
def test_items_have_no_flags(write, flag: str) -> None:
    """The parser would change the last item alone."""
    message = mistake("--config", write(TWO), flag, "5")
    assert message.startswith(f"command line: {flag.partition('=')[0]}: ")
    assert "sources '[{" in message


def test_sources_in_the_file_and_on_the_command_line(write) -> None:
    """The same list; the command line's takes the place of the file's."""
    both = [WeightedSource(path="a.jsonl", weight=2.0), WeightedSource(path="b", limit=3)]
    assert parse("--config", write(TWO)).data.sft.sources == both
    words = '[{"path": "a.jsonl", "weight": 2}, {"path": "b", "limit": 3}]'
    assert parse("--data.sft.sources", words).data.sft.sources == both
    one = parse("--config", write(TWO), "--data.sft.sources", '[{"path": "c"}]').data.sft.sources
    assert one == [WeightedSource(path="c")]
    assert parse().data.sft.sources == []


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("weight: 2", "wieght: 2", "c.yaml:5: ", "no key data.sft.sources[0].wieght. Did you mean"),
        ("weight: 2", "weight: two", "c.yaml:5: ", "must be a number, but is two"),
        ("weight: 2", "weight:", "c.yaml:5: key data.sft.sources[0].weight: ", "has no value"),
        ("weight: 2", "weight: 0", "c.yaml:5: key data.sft.sources[0].weight: ", "must be above 0"),
        ("weight: 2", "weight: -1.5", "c.yaml:5: ", "-1.5 must be above 0"),
        ("weight: 2", "weight: .nan", "c.yaml:5: ", "must be above 0"),
        ("path: a.jsonl", "limit: 2", "c.yaml:4: key data.sft.sources[0].path: ", "is not set"),
        ("path: b, ", "", "c.yaml:6: key data.sft.sources[1].path: ", "is not set"),
        ("limit: 3", "limit: x", "c.yaml:6: key data.sft.sources[1].limit: ", "a whole number"),
        ("limit: 3", "limit: 0", "c.yaml:6: key data.sft.sources[1].limit: ", "above 0"),
        ("limit: 3", "prompt_tokens: 0", "c.yaml:6: ", "above 0"),
        ("limit: 3", "format: chat", "c.yaml:6: key data.sft.sources[1].format: ", "one of"),
        ("limit: 3", "sources: []", "c.yaml:6: ", "no key data.sft.sources[1].sources"),
        ("{path: b, limit: 3}", "b", "c.yaml:6: key data.sft.sources[1]: ", "such as {path: FILE"),
        ("    sources", "    path: a\n    sources", "c.yaml:3: key data.sft.path: ", "beside"),
        ("    sources", "    limit: 2\n    sources", "c.yaml:3: key data.sft.limit: ", "items of"),
    ],
)  # fmt: skip
def test_mistakes_in_a_list_of_sources(write, old: str, new: str, place: str, said: str) -> None:
    """File, line and item are named."""
    assert old in TWO
    message = mistake("--config", write(TWO.replace(old, new, 1)))
    assert message.startswith(place), message
    assert said in message


def test_a_source_where_a_list_belongs(write) -> None:
    message = mistake("--config", write("data:\n  sft:\n    sources: a.jsonl\n"))
    assert message.startswith("c.yaml:3: key data.sft.sources: must be a list")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('["a.jsonl"]', "such as {path: FILE"),
        ('[{"path": "a", "wieght": 1}]', "wieght"),
        ('[{"path": "a", "weight": "x"}]', "must be a number"),
        ('[{"path": "a", "weight": 0}]', "must be above 0"),
        ('[{"weight": 1}]', "is not set"),
    ],
)
def test_mistakes_on_the_command_line(value: str, said: str) -> None:
    message = mistake("--data.prompts.sources", value)
    assert message.startswith("command line: ")
    assert "data.prompts.sources" in message
    assert said in message


STREAM = ["--data.sft.streaming", "true", "--data.sft.path", "a", "--sft.max_steps", "3"]


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (STREAM[:4], "data.sft.streaming", "needs sft.max_steps"),
        ([*STREAM, "--data.sft.format", "messages"], "data.sft.streaming", "format text only"),
        ([*STREAM, "--data.sft.format", "oasst"], "data.sft.streaming", "format text only"),
        ([*STREAM, "--data.sft.transcripts", "true"], "data.sft.streaming", "format text only"),
        ([*STREAM[:2], *STREAM[4:], "--data.sft.sources", '[{"path": "a", "transcripts": true}]'],
         "data.sft.streaming", "format text only"),
        (["--data.join", "x", "--data.overlap", "9", "--sft.max_length", "9"], "data.overlap",
         "all of sft.max_length 9"),
        (["--data.prompts.streaming", "true"], "data.prompts.streaming", "stage 1"),
        (["--data.preference.streaming", "true"], "data.preference.streaming", "stage 1"),
        (["--data.sft.transcripts", "true", "--template.kind", "none"], "data.sft.transcripts",
         "verbatim"),
        (["--data.sft.sources", '[{"path": "a", "transcripts": true}]', "--template.kind", "none"],
         "data.sft.sources[0].transcripts", "verbatim"),
        (["--data.prompts.prompt_tokens", "0"], "data.prompts.prompt_tokens", "above 0"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(words: list[str], key: str, said: str) -> None:
    message = mistake(*words)
    assert message.startswith(f"command line: --{key}: "), message
    assert said in message


def test_a_stream_that_can_be() -> None:
    assert parse(*STREAM).data.sft.streaming
