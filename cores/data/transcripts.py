"""Transcripts in hh-rlhf's form, "\\n\\nHuman: ...\\n\\nAssistant: ...", and where a pair parts.

The form is that of https://github.com/anthropics/hh-rlhf.
"""

import re
import unicodedata
from itertools import pairwise

from cores.config.template import TemplateSection
from cores.data.values import Turn

BLANK = r"(?:\r?\n){2}"
"""Line ends may be those of Windows."""
FIRST = re.compile(rf"(?:\A\s*|{BLANK})(Human|Assistant):(?: (?:\r?\n(?!\r?\n))?)?")
"""A turn begins: after a blank line, or at the beginning of the text."""
FURTHER = re.compile(BLANK + "(?:Human|Assistant):")
NO_TURN = 'no turn "Human:" or "Assistant:"'
ASSISTANT = re.compile(BLANK + "Assistant:")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
UNSPACED = (
    "CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA ", "BOPOMOFO ",
    "THAI ", "LAO ", "KHMER ", "MYANMAR ",
)  # fmt: skip
"""Beginnings of the Unicode names of letters that are written without spaces between words."""


def parse(text: str, section: TemplateSection | None = None) -> list[Turn]:
    """The turns of a transcript; none if nobody speaks in it.

    Text before the first turn is a system turn. One space after a colon, and a line break behind
    that space (BELLE's form), are not part of the turn; nor is what `section` puts before it, which
    would stand there twice.
    Turns of one speaker in a row are one turn with a blank line between them, as chat templates
    want speakers to alternate. A transcript that ends with "Assistant:" ends with an empty turn.
    """
    marks = list(FIRST.finditer(text))
    if not marks:
        return []
    before = text[: marks[0].start()].strip()
    turns = [{"role": "system", "content": before}] if before else []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        role = SPEAKERS[mark[1]]
        before = (getattr(section, role).prefix if section else "").lstrip()
        begin = mark.start(1) + len(before) if text.startswith(before, mark.start(1)) else 0
        content = text[max(begin, mark.end()) : end]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content
        else:
            turns.append({"role": role, "content": content})
    return turns


def part_turns(
    chosen: list[Turn], rejected: list[Turn]
) -> tuple[list[Turn], tuple[str, str]] | None:
    """(the common turns, the two replies) of two whole conversations.

    None unless they differ in one last assistant turn each and in nothing before it.
    """
    both = bool(chosen and rejected)
    if not both or chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        return None
    if chosen[:-1] != rejected[:-1]:
        return None
    return chosen[:-1], (chosen[-1]["content"], rejected[-1]["content"])


def behind(before: list[Turn], turns: list[Turn]) -> tuple[list[Turn], str | None]:
    """`turns` behind what stood before them, one system turn at most; or why they do not fit."""
    systems = [part[0] for part in (before, turns) if part and part[0]["role"] == "system"]
    if len(systems) < 2:
        return [*before, *turns], None
    if systems[0] != systems[1]:
        return turns, "column system and first turn disagree"
    return [*before, *turns[1:]], None


def merged(prompt: list[Turn], found: list[Turn]) -> tuple[list[Turn], str | None]:
    """The prompt that a column and a pair of whole conversations both tell, as far as either goes;
    or why they do not fit."""
    asked, told = ([t for t in turns if t["role"] != "system"] for turns in (prompt, found))
    if not told or asked[-len(told) :] == told:
        return behind(prompt[: len(prompt) - len(told)], found)
    users = [turn for turn in told if turn["role"] == "user"]
    if told[-len(asked) :] == asked or asked == users[:1]:
        return behind(prompt[: len(prompt) - len(asked)], found)
    return found, "prompt and pair disagree"


def from_the_first_user(turns: list[Turn]) -> list[Turn]:
    """Without what an assistant says before the first user turn."""
    roles = [turn["role"] for turn in turns]
    first = roles.index("user") if "user" in roles else 0
    return [turn for turn in turns[:first] if turn["role"] == "system"] + turns[first:]


def in_turn(turns: list[Turn]) -> bool:
    """Whether users and assistants take turns, and a system turn stands at the beginning alone."""
    spoken = [turn["role"] for turn in turns if turn["role"] in ("user", "assistant", "tool")]
    late = any(turn["role"] == "system" for turn in turns[1:])
    return not late and not any(a == b != "tool" for a, b in pairwise(spoken))


def holds_turns(turns: list[Turn]) -> bool:
    """Whether one of them holds others, as transcripts do that are not taken apart."""
    return any(turn["role"] != "text" and FURTHER.search(turn["content"]) for turn in turns)


def first_user_turn(turns: list[Turn]) -> str:
    """Its text; empty where there is none."""
    return next((turn["content"] for turn in turns if turn["role"] == "user"), "")


def problem_of(prompt: list[Turn]) -> str | None:
    """Why these turns are no prompt; None: they are one. Tools may return nothing."""
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in prompt):
        return "empty prompt"
    spoken = (turn["content"] for turn in prompt if turn["role"] not in ("system", "tool"))
    if not all(content.strip() for content in spoken):
        return "empty turn"
    return None


def part_texts(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    """(the common beginning, the two rests) of two whole texts, verbatim.

    The beginning ends with the last "\\n\\nAssistant:" that both have in common; without one it
    ends before the white space and the word in which they first differ, as tokenizers do; where
    words are written without spaces, before the character, with its combining marks.
    """
    pairs = zip(chosen, rejected, strict=False)
    alike = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    common = chosen[:alike]
    marks = [*ASSISTANT.finditer(common)]
    if marks:
        cut = marks[-1].end()
    else:
        longer = [text for text in (chosen, rejected) if len(text) > alike]
        cut = min((_base(text, alike) for text in longer), default=alike)
        while cut and _of_spaced_word(common[base := _base(common, cut - 1)]):
            cut = base
        cut = len(common[:cut].rstrip())
    return common[:cut], (chosen[cut:], rejected[cut:])


def _base(text: str, i: int) -> int:
    """Where the character begins to which text[i] belongs, itself or as a combining mark."""
    while i and unicodedata.category(text[i]).startswith("M"):
        i -= 1
    return i


def _of_spaced_word(character: str) -> bool:
    word = character.isalnum() or character == "_"
    return word and not unicodedata.name(character, "").startswith(UNSPACED)
