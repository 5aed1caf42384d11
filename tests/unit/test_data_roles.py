"""Templates of our own: what stands around each turn, and what of it is learned, token by token."""

from pathlib import Path
from typing import Any

import pytest
from _data_helpers import config, write_jsonl
from _tokenizers import chat_like, gpt2_like, llama_like

from cores.config.template import RoleTemplate, TemplateSection
from cores.data import preference_data, prompt_data, sft_data
from cores.data.inspect import segments
from cores.data.roles import written
from cores.errors import UserError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "six"},
]
ASKED = {"messages": TALK[1:4], "chosen": "six", "rejected": "nine"}


def template(**fields: Any) -> TemplateSection:
    """Kind roles, with marks that show where each field goes."""
    given = {
        "user": RoleTemplate("Q: ", "\n"),
        "assistant": RoleTemplate("A: ", "\n"),
        **fields,
    }
    return TemplateSection(kind="roles", **given)


def learned(
    tmp_path: Path, section: TemplateSection, row: dict[str, Any], tokenizer: Any, **sft: Any
) -> list[tuple[str, bool]]:
    """The runs of trained and untrained text of the one row."""
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    data = sft_data(config(path, section, sft=sft), tokenizer)
    (made,) = data.train
    return segments(made["input_ids"], [label != -100 for label in made["labels"]], tokenizer)


def asked(tmp_path: Path, section: TemplateSection, row: dict[str, Any], tokenizer: Any) -> Any:
    """The prompt of stage 3, as ids and text."""
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    (made,) = prompt_data(config(path, section), tokenizer).train
    return made["input_ids"], made["prompt"]


def test_rounds_and_history(tmp_path: Path) -> None:
    """ChatGLM's form: rounds count from 0, earlier replies have another frame and no stop token,
    the last one opens with a token that is learned; the prompt of stage 3 is its beginning."""
    section = template(
        user=RoleTemplate("[Round {round}]\nQ: ", "\n"),
        assistant=RoleTemplate("A: <|im_start|>", opening="|"),
        earlier=RoleTemplate("A: ", "\n", stop=""),
    )
    row = {"messages": TALK[1:]}
    prompt = "[Round 0]\nQ: two\nA: four\n[Round 1]\nQ: three\nA: <|im_start|>"
    found = learned(tmp_path, section, row, chat_like())
    assert found == [(prompt, False), ("|six<|im_end|>", True)]
    ids, text = asked(tmp_path, section, {"messages": TALK[1:4]}, chat_like())
    assert text == prompt
    path = write_jsonl(tmp_path / "pairs.jsonl", [ASKED])
    (pair,) = preference_data(config(path, section), chat_like()).train
    assert pair["chosen_ids"][: pair["prompt_length"]] == ids


def test_system_inside_the_first_question(tmp_path: Path) -> None:
    """Llama 2's form: the system text in the first user turn, BOS before each turn, once."""
    section = template(
        user=RoleTemplate("<s>[INST] ", " [/INST]"),
        assistant=RoleTemplate(opening=" ", suffix=" "),
        system=RoleTemplate("<<SYS>>\n", "\n<</SYS>>\n\n"),
        system_in_user=True,
    )
    assert learned(tmp_path, section, {"messages": TALK}, llama_like()) == [
        ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\ntwo [/INST]", False),
        (" four </s>", True),
        ("<s>[INST] three [/INST]", False),
        (" six </s>", True),
    ]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("ssua", "Q: <1><2>3\nA: 4"),
        ("usa", "Q: 1\n<2>A: 3"),
        ("usua", "Q: 1\nQ: <2>3\nA: 4"),
        ("us", "Q: 1\n<2>A: "),
    ],
)
def test_no_system_turn_is_lost_inside_questions(roles: str, expected: str) -> None:
    """Several stand there together; one without a question behind it stands by itself."""
    names = {"s": "system", "u": "user", "a": "assistant"}
    turns = [{"role": names[r], "content": str(i)} for i, r in enumerate(roles, 1)]
    section = template(
        system=RoleTemplate("<", ">"), system_in_user=True, assistant=RoleTemplate("A: ", stop="")
    )
    text = "".join(part.text for part in written(turns, section, "|"))
    assert text == expected


def test_what_of_a_role_is_learned(tmp_path: Path) -> None:
    """Markers, contents, both or neither, of any role; loss on the reply by default."""
    turns = [
        {"role": "user", "content": "add"},
        {"role": "thoughts", "content": "easy"},
        {"role": "commands", "content": "1+1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "two"},
    ]
    section = template(
        thoughts=RoleTemplate("T: ", "\n", train="content"),
        commands=RoleTemplate("C: ", "\n", train="all"),
        tool=RoleTemplate("R: ", "\n", train="markers"),
    )
    from cores.data.roles import written

    found = [(s.text, s.train) for s in written(turns, section, "<|im_end|>")]
    assert found == [
        ("Q: add\nT: ", False),
        ("easy\nC: 1+1\nR: ", True),
        ("2", False),
        ("\n", True),
        ("A: ", False),
        ("two\n<|im_end|>", True),
    ]


def test_labels_of_a_question_whose_markers_are_learned(tmp_path: Path) -> None:
    """Also as tokens: what is learned begins and ends where its text does."""
    section = template(user=RoleTemplate("Q: ", "\n", train="markers"))
    row = {"prompt": "two towels", "completion": "four"}
    assert learned(tmp_path, section, row, gpt2_like()) == [
        ("Q: ", True),
        ("two towels", False),
        ("\n", True),
        ("A: ", False),
        ("four\n<|endoftext|>", True),
    ]


def test_turns_that_bring_their_markers() -> None:
    """MOSS's form: nothing is written, prefix and suffix tell what is learned; a result without
    room between its markers is all marker; what stands behind the stop token is learned too."""
    from cores.data.roles import written

    section = template(
        user=RoleTemplate("<U>: ", "<eou>\n", train="all"),
        tool=RoleTemplate("<R>:\n", "<eor>\n", train="markers"),
        assistant=RoleTemplate("<A>: ", "<eoa>\n", train="all"),
        marked=True,
    )
    turns = [
        {"role": "system", "content": "Serve.\n"},
        {"role": "user", "content": "<U>: add<eou>\n"},
        {"role": "tool", "content": "<R>:\n2\n<eor>\n"},
        {"role": "assistant", "content": "<A>: two<eoa>\n"},
        {"role": "user", "content": "<U>: thanks<eou>\n"},
        {"role": "tool", "content": "<R>: None<eor>\n"},
        {"role": "assistant", "content": "welcome on its own"},
    ]
    found = [(s.role, s.text, s.train) for s in written(turns, section, "<eoa>")]
    assert found == [
        ("prompt", "Serve.\n", False),
        ("prompt", "<U>: add<eou>\n<R>:\n", True),
        ("prompt", "2\n", False),
        ("prompt", "<eor>\n<A>: ", True),
        ("assistant", "two<eoa>", True),
        ("prompt", "\n<U>: thanks<eou>\n<R>: None<eor>\n", True),
        ("assistant", "welcome on its own<eoa>", True),
    ]


def test_replaced_texts_bos_and_another_stop(tmp_path: Path) -> None:
    section = template(replace={"\n": "\\n"}, bos=False, assistant=RoleTemplate("A: ", stop="###"))
    row = {"prompt": "one\ntwo", "completion": "three\nfour"}
    assert learned(tmp_path, section, row, llama_like()) == [
        ("Q: one\\ntwo\nA: ", False),
        ("three\\nfour###", True),
    ]
    text = {"text": "a\nb"}
    verbatim = TemplateSection(kind="none", replace={"\n": "\\n"})
    assert learned(tmp_path, verbatim, text, gpt2_like()) == [("a\\nb<|endoftext|>", True)]


def test_another_opening_for_rows_with_an_input(tmp_path: Path) -> None:
    """Alpaca's two sentences, in stages 1 and 3; a system turn of the row's own wins."""
    section = template(system_prompt="Alone.", system_prompt_input="With.", separator="\nI: ")
    rows = [
        ({"instruction": "add", "input": "", "output": "2"}, "Alone.Q: add\nA: "),
        ({"instruction": "add", "input": "1", "output": "2"}, "With.Q: add\nI: 1\nA: "),
        ({"instruction": "add", "input": "1", "output": "2", "system": "Own."},
         "Own.Q: add\nI: 1\nA: "),
    ]  # fmt: skip
    for row, prompt in rows:
        assert learned(tmp_path, section, row, gpt2_like())[0] == (prompt, False)
        assert asked(tmp_path, section, row, gpt2_like())[1] == prompt


GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


def test_a_chat_template_that_marks_what_is_learned(tmp_path: Path) -> None:
    from copy import deepcopy

    tokenizer = deepcopy(chat_like())
    tokenizer.chat_template = GENERATION
    section = TemplateSection(kind="chat")
    found = learned(tmp_path, section, {"messages": TALK}, tokenizer)
    assert [text for text, train in found if train] == ["four<|im_end|>", "six<|im_end|>"]
    whole = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert "".join(text for text, _ in found) == whole
    tokenizer.chat_template = GENERATION.replace("+ '<|im_end|>' }}{% endg", "}}{% endg")
    with pytest.raises(UserError, match="would never learn to stop"):
        learned(tmp_path, section, {"messages": TALK}, tokenizer)


def test_a_template_that_prints_the_date(tmp_path: Path) -> None:
    """The same prompt in every stage, whatever the day."""
    from copy import deepcopy

    tokenizer = deepcopy(chat_like())
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') + '\n' }}" + str(
        chat_like().chat_template
    )
    _, prompt = asked(tmp_path, TemplateSection(kind="chat"), {"prompt": "two"}, tokenizer)
    assert prompt.startswith("26 Jul 2024\n")


def test_a_conversation_is_tokenized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters handed to the tokenizer grow with the conversation, not with its square."""
    from cores.data import encode

    counts, inner = [], encode._tokenize

    def counted(texts: list[str], tokenizer: Any) -> Any:
        counts.append(sum(map(len, texts)))
        return inner(texts, tokenizer)

    monkeypatch.setattr(encode, "_tokenize", counted)
    for rounds in (10, 40):
        turns = [{"role": role, "content": f"turn {n} of many words"}
                 for n in range(rounds) for role in ("user", "assistant")]  # fmt: skip
        learned(tmp_path, TemplateSection(kind="chat"), {"messages": turns}, chat_like(),
                max_length=9999)  # fmt: skip
    assert counts[1] < 5 * counts[0]


@pytest.mark.parametrize("tokenizer", [gpt2_like, chat_like, llama_like])
def test_pieces_are_the_tokenization_of_the_whole(tokenizer: Any) -> None:
    """Added tokens part a text: what is between them is tokenized as it is in the whole."""
    from cores.data.encode import encode_rows
    from cores.data.roles import Segment

    made = tokenizer()
    eos = made.eos_token
    text = f"Hello there!{eos} 你好  world {eos}{eos}\n\n last{eos}"
    (row,) = encode_rows([[Segment("prompt", text, False)]], made, [])
    assert row.ids == made(text, add_special_tokens=False)["input_ids"]
    assert not row.merged
