"""Which rows are held out, and that some are left."""

import hashlib
from typing import Any

from cores.data.report import SplitReport
from cores.data.transcripts import NO_TURN
from cores.errors import UserError

Rows = list[dict[str, Any]]


def held_out(key: str, fraction: float) -> bool:
    """Whether rows with this first user turn are held out: by its sha256, mapped to 0..1."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def require(rows: Rows, report: SplitReport, what: str, key: str) -> None:
    """UserError with the counts if nothing is left."""
    if rows:
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in report.dropped.most_common())
    remedy = f", or set {key}.transcripts to false" if NO_TURN in report.dropped else ""
    if any(reason.startswith("holds the control token") for reason in report.dropped):
        remedy += ", or turns (messages) in place of texts that a chat template has written"
    raise UserError(
        f"{key}: no {what} of {report.path!r} is left: {report.read} read as format "
        f"{report.format}, all dropped ({reasons}); correct the rows, raise the length limit named "
        f"if one is, or give another {key}.format{remedy}."
    )
