"""What a row says beside what is read: used, or refused by name; never lost without a word."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, ROLES, config, write_jsonl
from _tokenizers import chat_like, gpt2_like, llama_like
from test_data_formats import REPLY, SYSTEM, USER, read, said

from cores.config.template import RoleTemplate, TemplateSection
from cores.data import preference_data, prompt_data, sft_data
from cores.errors import UserError

TOOL = {**REPLY, "tool_calls": [{"name": "w"}]}
BEFORE = [SYSTEM, said("user", "Q0"), said("assistant", "A0"), USER]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tool_calls", [{"type": "function"}]),
        ("reasoning_content", "two plus two"),
        ("weight", 0.5),
        ("weight", "0"),
        ("images", ["a.png"]),
    ],
)
def test_keys_of_a_turn_that_would_be_lost(key: str, value: Any) -> None:
    """They are refused with row and turn, but where they say nothing or are ignored knowingly."""
    row = {"messages": [USER, {**REPLY, key: value}]}
    with pytest.raises(UserError, match=rf"^rows.jsonl:1: turn 2 of 'messages' has {key} \("):
        read(row, "sft")
    assert read(row, "sft", ignore=[key]).conversations == ([USER, REPLY],)


@pytest.mark.parametrize(
    ("key", "value"), [("tool_calls", None), ("tool_calls", []), ("weight", 1), ("train", True)]
)
def test_keys_of_a_turn_that_say_nothing(key: str, value: Any) -> None:
    """Exports write every key into every turn."""
    row = {"messages": [USER, {**REPLY, key: value}]}
    assert read(row, "sft").conversations == ([USER, REPLY],)


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize(
    ("name", "value"), [("label", False), ("tools", [{}]), ("image", "a.png"), ("parent_id", "1")]
)
def test_columns_that_would_be_lost(stage: Any, name: str, value: Any) -> None:
    """A demonstration with label false would be learned; a reward function may read any."""
    row = {"prompt": "Q", "completion": "A", "chosen": "A", "rejected": "B", name: value}
    with pytest.raises(UserError, match=rf"^rows.jsonl:1: column '{name}' \(.*\) is not read"):
        read(row, stage)
    assert read(row, stage, ignore=[name]).dropped is None
    assert read({**row, name: None}, stage).dropped is None
    assert read(row, "ppo").conversations == ([USER],)


def test_what_is_ignored_is_there() -> None:
    """A name that nothing has is a slip of the pen."""
    with pytest.raises(UserError, match=r"^data.x.ignore: labels is no column of 'rows.jsonl'"):
        read({"prompt": "Q", "completion": "A"}, "sft", ignore=["labels"])


@pytest.mark.parametrize(
    ("stage", "more"),
    [("sft", {"output": "A"}), ("reward", {"chosen": "A", "rejected": "B"}), ("ppo", {})],
)
def test_system_and_history_stand_before_the_prompt(stage: Any, more: dict[str, Any]) -> None:
    """In all stages alike: the prompt of stage 3 begins the rows of the others."""
    row = {"instruction": "Q", "system": "S", "history": [["Q0", "A0"]], **more}
    for turns in read(row, stage).conversations:
        assert turns[:4] == BEFORE
    plain = read({**row, "system": "", "history": []}, stage).conversations[0]
    assert plain[0] == USER
    ignored = read(row, stage, ignore=["system", "history"]).conversations[0]
    assert ignored[0] == USER


def test_a_system_that_is_told_twice() -> None:
    """Once if both say the same; a row whose two disagree is dropped with that reason."""
    row: dict[str, Any] = {"messages": [SYSTEM, USER, REPLY], "system": "S"}
    assert read(row, "sft").conversations == ([SYSTEM, USER, REPLY],)
    told = read({**row, "system": "other"}, "sft").dropped
    assert told == "column system and first turn disagree"


def test_a_round_that_is_none() -> None:
    """With its number."""
    row = {"prompt": "Q", "completion": "A", "history": [["Q0", "A0"], ["Q1"]]}
    with pytest.raises(UserError, match="round 2 of 'history' must be a list of a question"):
        read(row, "sft")


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_text_prompt_beside_whole_conversations(stage: Any) -> None:
    """The pair holds it all; where the prompt is another one the row is dropped."""
    pair = {side: [*BEFORE, said("assistant", side)] for side in ("chosen", "rejected")}
    for prompt in ("Q", "Q0", [USER], BEFORE):
        turns = read({"prompt": prompt, **pair}, stage).conversations[0]
        assert turns[:4] == BEFORE, prompt
    assert read({"prompt": "Z", **pair}, stage).dropped == "prompt and pair disagree"


def test_a_prompt_that_tells_more_than_the_pair() -> None:
    """A system turn or rounds that only one of the two has are kept, whichever has them."""
    pair = {side: [USER, said("assistant", side)] for side in ("chosen", "rejected")}
    rounds = [["Q0", "A0"]]
    for row in (
        {"prompt": BEFORE, **pair},
        {"prompt": "Q", "system": "S", "history": rounds, **pair},
        {"system": "S", "history": rounds, **pair},
    ):
        for stage in ("sft", "reward", "ppo"):
            turns = read(row, stage).conversations[0]  # type: ignore[arg-type]
            assert turns[: len(BEFORE)] == BEFORE, (row, stage)
    other = {side: [said("system", "Z"), *turns] for side, turns in pair.items()}
    told = read({"prompt": "Q", "system": "S", **other}, "reward").dropped
    assert told == "column system and first turn disagree"


@pytest.mark.parametrize(("name", "value"), [("system", "S"), ("history", [["Q0", "A0"]])])
def test_what_has_no_place_is_refused(name: str, value: Any) -> None:
    """With template.kind none, and beside a text, there are no turns that could stand before it."""
    for row in ({"prompt": "Q", "completion": "A"}, {"text": "T"}):
        for kind in ("none", "chat") if "text" in row else ("none",):
            assert read({**row, name: None}, "sft", kind=kind).dropped is None
            assert read({**row, name: value}, "ppo", kind=kind).dropped is None
            assert read({**row, name: value}, "sft", kind=kind, ignore=[name]).dropped is None
            with pytest.raises(UserError, match=rf"column '{name}' \(what stood before the pro"):
                read({**row, name: value}, "sft", kind=kind)


@pytest.mark.parametrize("name", ["parent_id", "image", "images", "tools"])
def test_what_a_text_would_lose(name: str) -> None:
    """Messages of a tree are no texts, a caption without its image is another one; a label is."""
    row = {"text": "T", "role": "prompter", "label": 1}
    assert read({**row, name: None}, "sft").dropped is None
    with pytest.raises(UserError, match=rf"column '{name}' \(.*\) is not read"):
        read({**row, name: "1"}, "sft")


def test_columns_of_any_meaning_in_stage_3() -> None:
    """A column of that name may be anything, and a reward function's."""
    row = {"prompt": "Q", "completion": "A", "system": "S", "history": "once"}
    with pytest.raises(UserError, match="round 1 of 'history' must be"):
        read(row, "sft")
    assert read(row, "ppo").conversations == ([SYSTEM, USER],)


def test_a_long_text_that_looks_like_a_list() -> None:
    """In time that does not grow with what it repeats."""
    text = '[{"role": ' * 200_000
    assert read({"prompt": "Q", "completion": text}, "sft").dropped is None


def test_a_reply_of_several_turns() -> None:
    """Beside a prompt its first turns were lost."""
    row = {"prompt": "Q", "completion": [said("user", "Q1"), REPLY]}
    with pytest.raises(UserError, match="column 'completion' holds 2 turns beside a column for"):
        read(row, "sft")


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]',
        "[{'content': 'Q', 'role': 'user'}, {'content': 'A', 'role': 'assistant'}]",
        '[{"from": "gpt", "value": "A"}]',
    ],
)
def test_the_text_of_a_list(text: str) -> None:
    """As CSV exports hold it; a reply that is JSON of another kind is a reply."""
    with pytest.raises(UserError, match="column 'chosen' holds the text of a list of turns"):
        read({"prompt": "Q", "chosen": text, "rejected": "B"}, "reward")
    row = {"prompt": "Q", "completion": '[{"name": "x"}]'}
    assert read(row, "sft").dropped is None


def test_a_reply_that_repeats_the_prompt() -> None:
    """Both sides, and a prompt long enough that no reply begins so by chance."""
    prompt = "\n\nHuman: Hi\n\nAssistant:"
    row = {"prompt": prompt, "chosen": prompt + " A", "rejected": prompt + " B"}
    assert read(row, "reward").dropped == "reply repeats the prompt"
    assert read({**row, "rejected": "B"}, "reward").dropped is None
    assert read({"prompt": "Hi", "completion": "Hi there"}, "sft").dropped is None


@pytest.mark.parametrize("reply", ["So ", "\n\n"])
def test_a_prompt_that_begins_the_reply(reply: str) -> None:
    """What the prompt has of it would be lost; nothing is, where that is white space."""
    prompt = [USER, said("assistant", reply)]
    pair = {"chosen": "A", "rejected": "B"}
    for stage, more in (("sft", {"completion": "A"}), ("reward", pair), ("ppo", {})):
        found = read({"prompt": prompt, **more}, stage)  # type: ignore[arg-type]
        assert found.dropped == ("prompt ends within a reply" if reply.strip() else None)
    pair = {"messages": [USER, said("assistant", "A")], "chosen": "A", "rejected": "B"}
    assert read(pair, "reward").dropped is None, "there the prompt is what stands before the reply"


def test_columns_not_read_are_named(tmp_path: Path) -> None:
    """Before training, in every stage."""
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "id": 7, "source": "x"}
    made = config(write_jsonl(tmp_path / "rows.jsonl", [row] * 3), CHAT)
    tokenizer = chat_like()
    for data, unread in (
        (sft_data(made, tokenizer), "id, source"),
        (preference_data(made, tokenizer), "id, source"),
        (prompt_data(made, tokenizer), "chosen, rejected, id, source"),
    ):
        assert data.report.lines()[0].endswith(f"; columns not read: {unread}")


def test_one_bos_where_the_template_writes_it(tmp_path: Path) -> None:
    """The tokenizer's own is left out then; stages agree on where the reply begins."""
    tokenizer = llama_like()
    user = RoleTemplate(f"{tokenizer.bos_token}[INST] ", " [/INST]")
    template = TemplateSection(kind="roles", user=user, assistant=ROLES.assistant)
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "completion": "A"}
    made = config(write_jsonl(tmp_path / "rows.jsonl", [row]), template)
    (sft,), (pair,), (asked,) = (
        f(made, tokenizer).train for f in (sft_data, preference_data, prompt_data)
    )
    for ids in (sft["input_ids"], pair["chosen_ids"], asked["input_ids"]):
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[: pair["prompt_length"]] == asked["input_ids"]


def test_a_template_that_writes_the_stop_token_twice(tmp_path: Path) -> None:
    """Stage 2 would score at the second, and stage 3 stop at the first."""
    tokenizer = deepcopy(chat_like())
    end = tokenizer.eos_token
    tokenizer.chat_template = str(tokenizer.chat_template).replace(end, end + end)
    made = config(write_jsonl(tmp_path / "rows.jsonl", [{"messages": [USER, REPLY]}]), CHAT)
    with pytest.raises(UserError, match=r":1: the tokenizer's chat template writes the .* twice"):
        sft_data(made, tokenizer)


@pytest.mark.parametrize("read_by", [sft_data, prompt_data])
def test_a_prompt_that_is_the_text_of_a_list(tmp_path: Path, read_by: Any) -> None:
    """As exports write it: not what anybody asked."""
    row = {"prompt": "[{'role': 'user', 'content': 'Q'}]", "completion": "A"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=r"rows\.jsonl:1: column 'prompt' holds the text of a list"):
        read_by(config(path, CHAT), chat_like())


def test_keys_of_turns_that_are_not_read_are_named(tmp_path: Path) -> None:
    """As columns are; what is empty says nothing."""
    turns = [
        {"role": "User", "content": "Q", "name": "Ann", "markdown": None},
        {"role": "assistant", "content": "A", "date": "today"},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns, "id": 1}])
    data = sft_data(config(path, CHAT), chat_like())
    assert data.report.train.unread == ["id", "date (of turns)", "name (of turns)"]
    turns[1]["loss"] = 0.5  # type: ignore[assignment]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns}])
    with pytest.raises(UserError, match="turn 2 of 'messages' has loss"):
        sft_data(config(path, CHAT), chat_like())


def test_transcripts_and_templates_over_the_tokenizers_are_told(tmp_path: Path) -> None:
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": "Hello"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    line = sft_data(config(path, CHAT), chat_like()).report.lines()[0]
    assert "with turns inside a turn, taken apart by transcripts: true: 1" in line
    made = config(path, ROLES, source={"transcripts": True})
    line = sft_data(made, chat_like()).report.lines()[0]
    assert "inside a turn" not in line
    assert "not in the tokenizer's own chat template" in line
    assert "own chat template" not in sft_data(made, gpt2_like()).report.lines()[0]


def test_rendered_texts_are_refused_with_the_way_on(tmp_path: Path) -> None:
    row = {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=r"or turns \(messages\) in place of texts that a chat"):
        sft_data(config(path, CHAT), chat_like())


def test_no_preset_is_advised_that_does_not_read_pairs() -> None:
    """`kto` reads a label beside a prompt and its reply, not beside two replies."""
    for row, advised in (
        ({"prompt": "Q", "completion": "A", "label": False}, True),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "label": False}, False),
    ):
        with pytest.raises(UserError) as caught:
            read(row, "sft")
        assert ("format kto" in str(caught.value)) == advised
