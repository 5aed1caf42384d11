"""What people choose: `<output_dir>/votes.jsonl`, which stage 2 reads as it is.

A winner is a pair with each other reply, if it is another text, columns `prompt`, `chosen` and
`rejected`. A tie, and replies that are all bad, are one row without these, for the record: stage 2
counts and leaves it out by its column `vote`.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cores.data.values import Turn
from cores.errors import UserError
from scripts.chat.voices import Controls, Reply

FILE = "votes.jsonl"
WITHOUT_WINNER = ("tie", "both bad")


@dataclass
class Round:
    """A question, what was said to it, and who said it."""

    turns: list[Turn]
    controls: Controls
    blind: bool
    replies: dict[str, Reply] = field(default_factory=dict)
    """By the letter that it is shown under."""
    voted: bool = False


def rows(of: Round, pick: str) -> Iterator[dict[str, Any]]:
    """The rows of a vote: `pick` is the winner's letter, "tie" or "both bad"."""
    alone = len(of.turns) == 1 and of.turns[0]["role"] == "user"
    prompt = of.turns[0]["content"] if alone else of.turns
    about = {**asdict(of.controls), "blind": of.blind}
    about["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    if pick in WITHOUT_WINNER:
        said = {reply.stage: reply.text for _, reply in sorted(of.replies.items())}
        yield {"prompt": prompt, "chosen": None, "rejected": None, "vote": pick, "replies": said,
               **about}  # fmt: skip
        return
    won = of.replies[pick]
    for letter, lost in sorted(of.replies.items()):  # not as they came to an end
        if letter == pick or lost.text == won.text:
            continue
        by = {"chosen_by": won.stage, "rejected_by": lost.stage}
        scores = {"chosen_score": won.score, "rejected_score": lost.score}
        yield {"prompt": prompt, "chosen": won.text, "rejected": lost.text, "vote": "winner",
               **by, **scores, **about}  # fmt: skip


def record(of: Round, pick: Any, path: Path, keep: bool) -> int:
    """Append a vote to `path`; how many rows that made. UserError for one that cannot be taken."""
    if not keep:
        raise UserError("logging.samples is false, so that no prompt and no vote is written.")
    if of.voted:
        raise UserError("This answer has its vote already.")
    if len(of.replies) < 2:
        raise UserError("There is one answer alone, and nothing to compare it with.")
    if pick not in (*of.replies, *WITHOUT_WINNER):
        known = ", ".join([*of.replies, *WITHOUT_WINNER])
        raise UserError(f"A vote is one of {known}, not {str(pick)[:20]!r}.")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(of, pick)]
    if not lines:
        raise UserError("All answers are the same; that is a tie.")
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")  # by hand, or a kill
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + "".join(lines))  # at once: another chat may append too
        file.flush()
        os.fsync(file.fileno())
    of.voted = True
    return len(lines)


def count(path: Path) -> int:
    """Rows that there are."""
    return path.read_bytes().count(b"\n") if path.exists() else 0
