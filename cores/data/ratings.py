"""Replies with a score each, for stage 2 with reward.kind pointwise or binned."""

from dataclasses import replace

from cores.config.data import OneSource
from cores.config.schema import Config
from cores.data.formats import ORDER, Example, Reader, Stage
from cores.data.sources import Row
from cores.data.values import LARGEST_MARGIN, number_of, short, value_of
from cores.errors import UserError

SCORE = "score"
FORMATS = [name for name in ORDER["sft"] if name not in ("text", "preference")]
"""Those of one reply to a prompt."""


class RatingReader(Reader):
    """Reads prompt and reply as stage 1 does, and the reply's score."""

    def __init__(
        self, config: Config, source: OneSource, columns: list[str], path: str, _: Stage, key: str
    ) -> None:
        """UserError as `Reader`, or if there is no score."""
        super().__init__(config, source, columns, path, "sft", key)
        kind = config.reward.kind
        if SCORE not in columns:
            raise UserError(
                f"{key}.path {path!r} has the columns {', '.join(columns)}, and none is {SCORE}, "
                f"which reward.kind {kind} learns; say which it is "
                f"(--{key}.columns '{{score: NAME}}'), or choose reward.kind pairwise for pairs."
            )
        if self.format not in FORMATS:
            raise UserError(
                f"{key}.path {path!r} is read as format {self.format}, and reward.kind {kind} "
                f"needs one reply to a prompt ({', '.join(FORMATS)}); give such rows, or choose "
                "reward.kind pairwise for pairs."
            )
        self.unread = [name for name in self.unread if name != SCORE]
        self.bins = config.reward.bins if kind == "binned" else None

    def read(self, row: Row) -> Example:
        """Dropped where there is no score; 0 is one. A value that is none raises UserError."""
        example, score = super().read(row), score_of(row, self.bins)
        if score is None:
            return replace(example, dropped=example.dropped or "no score")
        return replace(example, score=score)


def score_of(row: Row, bins: int | None) -> float | None:
    """A reply's score: any number, or with `bins` a rating, 1 to so many; None where none is given.
    0 is a score as others are."""
    value, score = value_of(row, "score"), number_of(row, "score")
    if score is None:
        return None
    if bins is None and not abs(score) <= LARGEST_MARGIN:
        raise UserError(
            f"{row.where}: column 'score' must be a number of at most {LARGEST_MARGIN:g}, but "
            f"holds {short(value)}; correct the row."
        )
    if bins is not None and score not in range(1, bins + 1):
        raise UserError(
            f"{row.where}: column 'score' must be a whole number from 1 to {bins} (reward.bins, "
            f"with reward.kind binned), but holds {short(value)}; correct the row, set "
            "reward.bins, or choose reward.kind pointwise."
        )
    return score
