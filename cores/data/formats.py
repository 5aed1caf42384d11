"""Formats: a row's columns become the conversation that a stage trains on or asks about."""

from dataclasses import dataclass
from typing import Literal

from cores.config.data import Format, OneSource
from cores.config.schema import Config
from cores.data.columns import BESIDE, QUESTIONS, column_hints, refuse
from cores.data.sources import Row
from cores.data.transcripts import (
    FURTHER,
    NO_TURN,
    behind,
    first_user_turn,
    merged,
    parse,
    part_texts,
    part_turns,
    problem_of,
)
from cores.data.values import (
    MEANING,
    Ignored,
    Turn,
    before_of,
    margin_of,
    reply_of,
    text_of,
    turns_of,
    value_of,
    with_system,
    words_of,
)
from cores.errors import UserError

Stage = Literal["sft", "reward", "ppo"]

ORDER: dict[Stage, tuple[Format, ...]] = {
    "sft": ("messages", "conversations", "instruction", "completion", "text", "preference"),
    "reward": ("preference",),
    "ppo": ("prompt", "text"),
}
"""Which format a stage takes where the columns fit several."""

PROMPTS = ("prompt", "instruction", "messages", "conversations")
"""Columns that hold a prompt, in order of preference."""

LISTS: tuple[Format, ...] = ("messages", "conversations")
"""Formats, and their columns, of turns in a list."""

PAIR = ("chosen", "rejected")

COLUMNS: dict[Format, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ()),
    "conversations": (("conversations",), ()),
    "instruction": (("instruction",), ("output",)),
    "completion": (("prompt",), ("completion",)),
    "text": (("text",), ()),
    "preference": (PROMPTS, PAIR),
    "prompt": (PROMPTS, ()),
}
"""Of which columns one must be there, for the prompt; and those of the replies, which stage 3, as
it takes the prompt of any format, does not need. Among PROMPTS a pair may stand for the column."""

VOTED = {"tie": "voted a tie", "both bad": "voted both bad"}
"""Votes of the chat page without a winner, and why such a row is left out."""
ECHO = 12
"""Characters of a prompt from which on a reply that begins with it repeats it."""


@dataclass(frozen=True)
class Example:
    """One row, read."""

    row: Row
    """As it was read."""
    key: str
    """First user turn (or the text): decides the side of the train/test split."""
    conversations: tuple[list[Turn], ...]
    """sft: one, with its reply. reward: chosen and rejected. ppo: one, ending before the reply,
    or a text of which a beginning is the prompt."""
    dropped: str | None = None
    """Why the row cannot be used; None: it can."""
    trimmed: bool = False
    """Turns after the last reply were cut off."""
    margin: float = 0.0
    """reward: what the chosen side has to lead by, in units of score."""
    score: float = 0.0
    """reward: of a reply that is rated."""
    begun: bool = False  # turns before the first user turn were left out


def choose_format(
    columns: list[str], path: str, stage: Stage, key: str, wanted: Format | None
) -> Format:
    """The format that the columns fit, or `wanted`; UserError names the columns if none fits."""
    candidates = ORDER[stage] if wanted is None else (wanted,)
    for candidate in candidates:
        groups = _needs(stage, candidate)
        if not groups:
            takes = sorted({*ORDER[stage], *(COLUMNS if stage == "ppo" else ())})
            raise UserError(
                f"{key}.format is {candidate!r}, which this stage cannot use; it takes one of: "
                f"{', '.join(takes)}."
            )
        # turns beside a pair are its prompt, so they demonstrate nothing by themselves
        paired = candidate in LISTS and set(PAIR) <= set(columns)
        if wanted is None and stage == "sft" and paired:
            continue
        if any(set(group) <= set(columns) for group in groups):
            return candidate
    fits = "; ".join(
        f"{candidate}: " + " or ".join(" + ".join(group) for group in _needs(stage, candidate))
        for candidate in candidates
    )
    raise UserError(
        f"{key}.path {path!r} has the columns {', '.join(columns) or '(none)'}, which do "
        f"not fit; needed are {fits}. Say what the file calls them with {key}.columns, such as "
        f"{{prompt: question, reply: answer}} (docs/data.md).{column_hints(columns, key)}"
    )


def _needs(stage: Stage, name: Format) -> list[tuple[str, ...]]:
    """The groups of columns of which one must be there; none if the stage cannot use the format."""
    prompts, replies = COLUMNS[name]
    if stage == "ppo":
        replies = ()
    elif name not in ORDER[stage]:
        return []
    return [(prompt, *replies) for prompt in prompts] + ([PAIR] if prompts == PROMPTS else [])


class Reader:
    """Reads the rows of one source under the format chosen for it."""

    def __init__(
        self,
        config: Config,
        source: OneSource,
        columns: list[str],
        path: str,
        stage: Stage,
        key: str,
    ) -> None:
        """For rows of `path` with these columns; UserError as `choose_format`."""
        self.template = config.template
        self.transcripts = source.transcripts
        self.stage = stage
        self.format = choose_format(columns, path, stage, key, source.format)
        self.column = next((name for name in COLUMNS[self.format][0] if name in columns), None)
        """The one that holds the prompt; None: `chosen` and `rejected` hold it both."""
        self.plain = self.format == "text" and not self.transcripts
        """Rows are texts without turns, which no template touches."""
        self.sides = {"sft": 1, "reward": 2, "ppo": 0}[stage]
        """Replies of a row that the stage reads."""
        learned = stage == "sft"
        obeyed = learned and self.format in LISTS and config.sft.loss_on != "all"
        self.ignore = Ignored(source.ignore, key, obeyed, learned)
        if unknown := sorted(set(source.ignore) - set(columns) - MEANING.keys()):
            raise UserError(
                f"{key}.ignore: {', '.join(unknown)} is no column of {path!r} (it has "
                f"{', '.join(columns)}) and no key of a turn that is refused "
                f"({', '.join(MEANING)}); remove it."
            )
        used = {*COLUMNS[self.format][1], "margin" if stage == "reward" else ""}
        used |= {self.column or "", *(() if self.column or self.plain else PAIR)}
        used |= {"input"} if self.column == "instruction" else set()
        placeless = self.plain or config.template.kind == "none"
        self.beside = [n for n in BESIDE if not placeless and n not in source.ignore]
        """Columns that are turns before the prompt, where there is a place for them."""
        self.unread = [name for name in columns if name not in used.union(self.beside)]
        """Columns that the stage does not read."""

    def read(self, row: Row) -> Example:
        """Empty prompts and replies, and conversations of another form, are dropped with their
        reason; a value of the wrong type raises UserError."""
        if self.stage != "ppo":
            self._refuse(row)
        if self.plain:
            text = text_of(row, "text")
            dropped = None if text.strip() else "empty text"
            return Example(row, text, ([{"role": "text", "content": text}],), dropped)
        if self.stage == "sft" and self.format in (*LISTS, "text"):
            return self._demonstration(row)
        prompt, replies, dropped = self._asked(row)
        dropped = dropped or problem_of(prompt)
        if replies and not any(replies):  # a row of votes.jsonl that is there for the record
            dropped = dropped or VOTED.get(str(row.columns.get("vote")))
        if dropped is None and any(not reply.strip() for reply in replies):
            dropped = "empty reply"
        if dropped is None and self.transcripts and any(map(FURTHER.search, replies)):
            dropped = "further turns in a reply"
        told = tuple([*prompt, {"role": "assistant", "content": reply}] for reply in replies)
        margin = margin_of(row) if self.stage == "reward" else 0.0
        key = first_user_turn(prompt)
        return Example(row, key, told or (prompt,), dropped, margin=margin)

    def _refuse(self, row: Row) -> None:
        """UserError for a column that would be lost and means something."""
        free = {*self.ignore.names, *(("label",) if self.plain else ())}
        free |= set() if self.column is None else {*QUESTIONS}
        refuse(row, [name for name in self.unread if name not in free], self.format, self.ignore)

    def _asked(self, row: Row) -> tuple[list[Turn], list[str], str | None]:
        """Prompt and replies, and why there are none."""
        if self.column is None:
            found, replies, dropped = self._whole(row)
            prompt, problem = behind(self._before(row), found)
            return prompt, replies, dropped or problem
        prompt, dropped = self._turns(row, self.column)
        begun = ""
        while prompt and prompt[-1]["role"] == "assistant":
            begun = prompt.pop()["content"].strip() or begun
        lists = [row.columns[side] for side in PAIR if isinstance(row.columns.get(side), list)]
        whole = len(lists) == len(PAIR) and any(len(side) > 1 for side in lists)
        if whole and self.format in ("preference", "prompt"):
            self.unread = [name for name in self.unread if name not in PAIR]
            found, replies, problem = self._whole(row)
            prompt, unlike = merged(prompt, found)
            return prompt, replies, dropped or problem or unlike
        names = COLUMNS[self.format][1][: self.sides]
        replies = [reply_of(row, name, self.ignore) for name in names]
        last = prompt[-1]["content"] if prompt else ""
        if len(last) >= ECHO and replies and all(reply.startswith(last) for reply in replies):
            dropped = dropped or "reply repeats the prompt"
        if begun and self.column in ("prompt", "instruction"):
            dropped = dropped or "prompt ends within a reply"
        if self.transcripts:
            replies = [reply.removeprefix(" ") for reply in replies]
        return prompt, replies, dropped

    def _before(self, row: Row) -> list[Turn]:
        # To reward functions of stage 3 a column may mean anything.
        kinds = {"system": str, "history": list} if self.stage == "ppo" else {}
        fits = [n for n in self.beside if isinstance(row.columns.get(n), kinds.get(n, object))]
        return before_of(row, fits, self.ignore)

    def _demonstration(self, row: Row) -> Example:
        """A conversation that is all shown, up to the last reply."""
        turns, dropped = self._turns(row, self.format)
        replies = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        key = first_user_turn(turns)
        if dropped is not None or not replies:
            return Example(row, key, (turns,), dropped or "no assistant turn")
        kept = turns[: replies[-1] + 1]
        dropped = problem_of(kept[:-1])
        if dropped is None and not kept[-1]["content"].strip():
            dropped = "empty reply"
        return Example(row, key, (kept,), dropped, trimmed=len(kept) < len(turns))

    def _turns(self, row: Row, column: str) -> tuple[list[Turn], str | None]:
        """A column's turns: its own, those of its transcript, or its text as a user's turn."""
        before = [] if column in PAIR else self._before(row)
        if column in LISTS or isinstance(value_of(row, column), list):
            turns = turns_of(row, column, self.ignore)
        else:
            text = words_of(row, column)
            given = (
                text_of(row, "input") if column == "instruction" and "input" in row.columns else ""
            )
            if given.strip() and text.strip():
                text = text + self.template.separator + given
                before = with_system(before, self.template.system_prompt_input)
            elif given.strip():  # the question, in files whose instruction may be empty
                text = given
            said: list[Turn] = [{"role": "user", "content": text}]
            turns = parse(text, self.template) if self.transcripts else said
            if self.transcripts and text.strip() and not turns:
                return turns, NO_TURN
        return behind(before, turns)

    def _whole(self, row: Row) -> tuple[list[Turn], list[str], str | None]:
        """Prompt and replies of a pair whose two sides both hold the prompt."""
        lists = [isinstance(value_of(row, side), list) for side in PAIR]
        if any(lists) or self.transcripts:
            if any(lists) and not all(lists):
                raise UserError(
                    f"{row.where}: without a column for the prompt 'chosen' and 'rejected' must "
                    "both be whole conversations; one is a list of turns, the other is not."
                )
            (chosen, one), (rejected, other) = (self._turns(row, side) for side in PAIR)
            parted = part_turns(chosen, rejected)
            if parted is None:
                unlike = "chosen and rejected do not differ in one last reply"
                return chosen, [], one or other or unlike
            return parted[0], list(parted[1][: self.sides]), None
        if self.template.kind != "none":
            raise UserError(
                f"{row.where}: there is no column for the prompt ({', '.join(PROMPTS)}), so "
                "'chosen' and 'rejected' must hold it. Name another that does (columns {prompt: "
                "NAME}), set transcripts: true in the section of the source (texts with Human: and "
                "Assistant: after empty lines) or template.kind: none (others), or give lists of "
                "turns."
            )
        prompt, rests = part_texts(text_of(row, "chosen"), text_of(row, "rejected"))
        return [{"role": "user", "content": prompt}], list(rests[: self.sides]), None
