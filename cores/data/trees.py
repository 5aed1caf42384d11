"""OpenAssistant's message trees (OpenAssistant/oasst2): nested, or a row a message.

Fields: https://github.com/LAION-AI/Open-Assistant/blob/504da5b/oasst-data/oasst_data/schemas.py.
Rank 0 is the best of the replies to one message; null: not ranked.
"""

import math
from collections.abc import Iterator
from typing import Any

from cores.data.comparisons import TEXT, Comparison, Job, MisfitError, Reply, lifted, need, number
from cores.data.sources import Row
from cores.data.values import Turn

ROLES = {"prompter": "user", "assistant": "assistant"}

Node = tuple[Row, list["Node"]]
"""A message (its columns are text, role, rank, deleted) and its replies."""


def read_trees(rows: list[Row], job: Job) -> Iterator[Comparison]:
    """Stage 1: of each tree the conversation that takes the best reply at every turn. Others: every
    message of a prompter with all before it, and the ranked replies to it."""
    nested = all("replies" not in row.columns and "prompt" in row.columns for row in rows)
    for root in (_nested(row) for row in rows) if nested else _linked(rows):
        if job.stage == "sft":
            yield from _best_path(root, job)
        else:
            yield from _questions(root, job)


def _nested(row: Row) -> Node:
    """Of a row {message_tree_id, prompt: {text, role, replies: [...]}}."""
    root: Node = (lifted(row, "prompt"), [])
    left = [root]
    while left:
        message, replies = left.pop()
        for reply in message.columns.get("replies") or []:
            if not isinstance(reply, dict):
                raise MisfitError(row, "'replies' must be a list of messages")
            replies.append((Row(row.where, reply), []))
        left += replies
    return root


def _linked(rows: list[Row]) -> list[Node]:
    """Of rows {message_id, parent_id, role, text, rank}: the messages without a parent."""
    nodes: dict[Any, Node] = {}
    for row in rows:
        name = need(row, "message_id", str, int)
        if name in nodes:
            raise MisfitError(row, f"'message_id' {name!r} stands in {nodes[name][0].where} too")
        nodes[name] = (row, [])
    roots = []
    for row, replies in nodes.values():
        parent = need(row, "parent_id", str, int, type(None))
        if parent in (None, ""):  # CSV holds no null
            roots.append((row, replies))
        elif parent in nodes:
            nodes[parent][1].append((row, replies))
        else:
            raise MisfitError(row, f"'parent_id' {parent!r} is no message of the source")
    return roots


def _kept(replies: list[Node], job: Job) -> list[Node]:
    """Without those that were deleted."""
    kept = [(row, more) for row, more in replies if not number(row, "deleted", missing=True)]
    job.counts["deleted messages left out with what answers them"] += len(replies) - len(kept)
    return kept


def _turn(message: Row) -> Turn:
    role = need(message, "role", str)
    if role not in ROLES:
        raise MisfitError(message, f"'role' is {role!r}, not one of {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": need(message, "text", *TEXT) or ""}


def _best_path(root: Node, job: Job) -> Iterator[Comparison]:
    """One conversation, up to its last reply; the first of replies that nobody ranked."""
    path = _kept([root], job)
    while path and (replies := _kept(path[-1][1], job)):
        ranks = [number(message, "rank", missing=True) for message, _ in replies]
        best = min(range(len(ranks)), key=lambda i: math.inf if (r := ranks[i]) is None else r)
        job.counts["worse branches left out"] += len(replies) - 1
        path.append(replies[best])
    turns = [_turn(message) for message, _ in path]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
        job.counts["questions without a reply left out"] += 1
    if turns:
        row = root[0]
        yield Comparison(row, turns[:-1], [Reply(turns[-1]["content"], 0.0, row)])


def _questions(root: Node, job: Job) -> Iterator[Comparison]:
    """In the order of the tree."""
    left = [(node, [_turn(node[0])]) for node in _kept([root], job)]
    while left:
        (message, replies), path = left.pop()
        replies = _kept(replies, job)
        further = [(node, [*path, _turn(node[0])]) for node in replies]
        if path[-1]["role"] == "user":
            ranks = [number(reply, "rank", missing=True) for reply, _ in replies]
            judged = [
                Reply(turns[-1]["content"], None if rank is None else -rank, reply)
                for rank, ((reply, _), turns) in zip(ranks, further, strict=True)
                if turns[-1]["role"] == "assistant"
            ]
            yield Comparison(Row(root[0].where, root[0].columns | message.columns), path, judged)
        left += reversed(further)
