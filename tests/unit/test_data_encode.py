"""Templates and encoding: the text, the ids, the labels, and prompts that are prefixes."""

from dataclasses import replace

import pytest
from _data_helpers import CHAT, NONE, ROLES
from _tokenizers import CHATML, chat_like, gpt2_like, llama_like
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cores.config.template import RoleTemplate, TemplateSection
from cores.data.encode import Encoded, LossOn, encode_rows
from cores.data.roles import Segment
from cores.data.template import Template, leading_ids
from cores.errors import UserError

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": " Good morning"},
    {"role": "user", "content": "A towel?"},
    {"role": "assistant", "content": " Of course"},
]
TEMPLATES = {
    "none": (NONE, gpt2_like),
    "roles": (ROLES, gpt2_like),
    "none-llama": (NONE, llama_like),
    "roles-llama": (ROLES, llama_like),
    "chat": (CHAT, chat_like),
}


def encode(
    turns: list[dict[str, str]],
    section: TemplateSection,
    tokenizer: PreTrainedTokenizerFast,
    loss_on: LossOn = "assistant",
) -> Encoded:
    segments = Template(section, tokenizer).segments(turns, "row 1")
    leading = [] if section.kind == "chat" else leading_ids(tokenizer)
    return next(encode_rows([segments], tokenizer, leading, loss_on))


def trained_text(row: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Decoded runs of trained tokens."""
    runs: list[list[int]] = [[]]
    for token, label in zip(row.ids, row.labels, strict=True):
        assert label in (token, -100)
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    """chat_like with another chat template."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=chat_like().backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
    )
    made.chat_template = template
    return made


def test_roles_by_hand() -> None:
    """Invariant 27: loss on completions and EOS only, whose id is single, after each turn."""
    tokenizer = gpt2_like()
    row = encode(TALK, ROLES, tokenizer)
    eos = tokenizer.eos_token
    assert tokenizer.decode(row.ids) == (
        "Be kind.\n\nUser: Hello\nAssistant: Good morning\n"
        f"{eos}User: A towel?\nAssistant: Of course\n{eos}"
    )
    assert trained_text(row, tokenizer) == [f" Good morning\n{eos}", f" Of course\n{eos}"]
    assert row.ids.count(tokenizer.eos_token_id) == 2
    assert row.labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.ids[: row.prompt_length]).endswith("A towel?\nAssistant:")


def test_none_is_verbatim() -> None:
    """Invariants 8, 27: with pad = eos the trained EOS is in the labels all the same."""
    tokenizer = gpt2_like()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    row = encode(TALK[1:], NONE, tokenizer)
    eos = tokenizer.eos_token
    assert tokenizer.decode(row.ids) == f"Hello Good morning{eos}A towel? Of course{eos}"
    assert trained_text(row, tokenizer) == [f" Good morning{eos}", f" Of course{eos}"]


def test_chat_ids_are_the_chat_templates() -> None:
    """Invariant 27: ids equal apply_chat_template's; the end-of-turn token is trained, the line
    break after it is not."""
    tokenizer = chat_like()
    row = encode(TALK, CHAT, tokenizer)
    assert row.ids == tokenizer.apply_chat_template(TALK, tokenize=True)["input_ids"]
    assert trained_text(row, tokenizer) == [" Good morning<|im_end|>", " Of course<|im_end|>"]
    assert tokenizer.decode(row.ids[row.reply_end :]) == "\n"
    open_ids = tokenizer.apply_chat_template(TALK[:4], add_generation_prompt=True)["input_ids"]
    assert row.ids[: row.prompt_length] == open_ids
    assert encode(TALK[:4], CHAT, tokenizer).ids == open_ids


def test_a_greeting_before_the_first_user_turn() -> None:
    tokenizer = chat_like()
    turns = [{"role": "assistant", "content": "Hi"}, *TALK[1:3]]
    row = encode(turns, CHAT, tokenizer)
    assert row.ids == tokenizer.apply_chat_template(turns)["input_ids"]
    assert trained_text(row, tokenizer) == [" Good morning<|im_end|>"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_loss_on(name: str) -> None:
    section, make = TEMPLATES[name]
    turns = TALK[1:] if section.kind == "none" else TALK
    both = encode(turns, section, make(), "assistant")
    last = encode(turns, section, make(), "last")
    every = encode(turns, section, make(), "all")
    assert both.ids == last.ids == every.ids == every.labels
    first_half = both.prompt_length
    assert last.labels == [-100] * first_half + both.labels[first_half:]
    assert any(label != -100 for label in both.labels[:first_half])


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_trained_whole(name: str) -> None:
    section, make = TEMPLATES[name]
    segments = Template(section, make()).segments([{"role": "text", "content": "Hello you"}], "r")
    tokenizer = make()
    row = next(encode_rows([segments], tokenizer, leading_ids(tokenizer)))
    plain = tokenizer("Hello you")["input_ids"]
    assert row.ids == [*plain, tokenizer.eos_token_id]
    start = len(leading_ids(tokenizer))
    assert row.labels == [-100] * start + row.ids[start:]
    assert row.prompt_length == 0


def test_bos_comes_first_where_the_tokenizer_adds_it() -> None:
    assert leading_ids(llama_like()) == [llama_like().bos_token_id]
    assert leading_ids(gpt2_like()) == leading_ids(chat_like()) == []
    row = encode(TALK, ROLES, llama_like())
    assert row.ids[0] == llama_like().bos_token_id
    assert row.labels[0] == -100
    assert row.ids.count(llama_like().bos_token_id) == 1


def test_system_prompt_is_put_where_there_is_none() -> None:
    tokenizer = gpt2_like()
    section = replace(ROLES, system_prompt="Be brief.")
    assert tokenizer.decode(encode(TALK[1:3], section, tokenizer).ids).startswith("Be brief.\n\nUs")
    assert encode(TALK, section, tokenizer) == encode(TALK, ROLES, tokenizer)
    section = replace(CHAT, system_prompt="Be brief.")
    decoded = chat_like().decode(encode(TALK[1:3], section, chat_like()).ids)
    assert decoded.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello")


def test_a_token_across_the_boundary() -> None:
    """The prompt keeps its own ids; under a chat template the row is marked instead."""
    tokenizer = gpt2_like()
    section = TemplateSection(kind="roles", assistant=RoleTemplate("Answer: "))
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "the end"}]
    row = encode(turns, section, tokenizer)
    prompt = encode(turns[:1], section, tokenizer)
    whole = tokenizer("xAnswer: the end")["input_ids"]
    assert whole[: len(prompt.ids)] != prompt.ids, "the case is what it says"
    assert row.merged
    assert row.ids[: row.prompt_length] == prompt.ids
    assert tokenizer.decode(row.ids) == "xAnswer: the end<|endoftext|>"
    assert trained_text(row, tokenizer) == ["the end<|endoftext|>"]
    row = encode(
        [*turns, {"role": "user", "content": "a longer turn"}, turns[1]], section, tokenizer
    )
    assert trained_text(row, tokenizer) == ["the end<|endoftext|>"] * 2
    chat = with_template(
        CHATML.replace("assistant\n' }}", "assistant\n ' }}").replace(
            "message['role'] + '\n' +",
            "message['role'] + '\n' + (' ' if message['role'] == 'assistant' else '') +",
        )
    )
    row = encode(turns, CHAT, chat)
    assert row.merged


CONTENT = st.text(
    st.sampled_from(list("aehtow .:\n\t'")) | st.characters(codec="utf-8"), min_size=1, max_size=12
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(contents=st.lists(CONTENT, min_size=4, max_size=4))
def test_prompts_are_prefixes(name: str, contents: list[str]) -> None:
    """Invariants 5, 27: the prompt of stage 3 begins the row of stage 1, has no loss, and the
    trained tokens are exactly the replies and their stop tokens."""
    section, make = TEMPLATES[name]
    tokenizer = make()
    if any(token in text for text in contents for token in tokenizer.all_special_tokens):
        return
    turns = [{**turn, "content": text} for turn, text in zip(TALK[1:], contents, strict=True)]
    one, two = encode(turns[:2], section, tokenizer), encode(turns, section, tokenizer)
    prompt_1, prompt_2 = (
        encode(turns[:1], section, tokenizer),
        encode(turns[:3], section, tokenizer),
    )
    for row, prompt in ((one, prompt_1), (two, prompt_2), (two, prompt_1)):
        if not row.merged or section.kind != "chat":
            assert row.ids[: len(prompt.ids)] == prompt.ids
            assert set(prompt.labels[: len(prompt_1.ids)]) == {-100}
    assert one.prompt_length == len(prompt_1.ids)
    assert two.prompt_length == len(prompt_2.ids)
    assert set(two.labels[: len(prompt_1.ids)]) == {-100}
    assert two.labels[: two.prompt_length] == prompt_2.labels
    assert (
        one.labels[one.prompt_length : one.reply_end] == one.ids[one.prompt_length : one.reply_end]
    )
    assert set(one.labels[one.reply_end :]) <= {-100}
    if section.kind == "chat" and not two.merged:
        assert two.ids == tokenizer.apply_chat_template(turns)["input_ids"]
    if tokenizer is not llama_like():  # whose decoder strips a leading space
        suffix = ROLES.assistant.suffix if section.kind == "roles" else ""
        assert trained_text(two, tokenizer) == [
            contents[1] + suffix + tokenizer.eos_token,
            contents[3] + suffix + tokenizer.eos_token,
        ]


def test_batches_do_not_change_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 4: rows are encoded the same in whatever company."""
    template = Template(ROLES, gpt2_like())
    rows = [template.segments(turns, "r") for turns in (TALK, TALK[1:3], TALK[:4])] * 3
    alone = [next(encode_rows([row], gpt2_like(), [])) for row in rows]
    monkeypatch.setattr("cores.data.encode.CHUNK", 2)
    assert list(encode_rows(rows, gpt2_like(), [])) == alone


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        (CHATML.replace("<|im_end|>", "<|pad|>"), "does not end a reply"),
        ("{{ raise_exception('no system') }}", "refuses this conversation \\(no system\\)"),
    ],
)
def test_chat_templates_that_cannot_work(template: str | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Template(CHAT, with_template(template)).segments(TALK, "rows.jsonl:7")


def test_tokenizers_that_cannot_work() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=gpt2_like().backend_tokenizer)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Template(NONE, bare)


def test_texts_that_a_tokenizer_cannot_encode() -> None:
    """Without an unknown token a word that it does not have is an error of the library's, which
    names nothing; here the text is named, not those beside it."""
    words = Tokenizer(models.WordLevel({"towel": 0, "room": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    rows = [[Segment("text", text, True)] for text in ("towel", "towel bath", "room")]
    with pytest.raises(UserError, match=r"cannot encode the text 'towel bath' \(.*unknown token"):
        list(encode_rows(rows, tokenizer, []))
