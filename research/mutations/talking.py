"""Bugs in what a run says while it runs, what it keeps to itself, and the chat page; see rl.py for
the form."""

from research.mutations.ppo import Bug

LISTENING = ("tests/unit/test_rollout_listening.py",)
PROGRESS = ("tests/unit/test_run_progress.py",)
PRIVACY = ("tests/integration/test_privacy.py",)
CHAT = ("tests/integration/test_chat.py", "tests/unit/test_chat_parts.py")

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/rollout/engine.py": (
        LISTENING,
        [
            ("nucleus-temperature", "the nucleus is that of temperature 1",
             "(ordered / temperature).softmax", "ordered.softmax"),
            ("nucleus-last", "the token that reaches the share is left out of the nucleus",
             "probs.cumsum(dim=-1) - probs >= top_p", "probs.cumsum(dim=-1) >= top_p"),
        ],
    ),
    "cores/rollout/graph/engine.py": (
        LISTENING,
        [
            ("listened-stale", "behind a rollout that was ended stands the one before",
             "(each[:, :taken] for each in drawn)", "iter(drawn)"),
            ("adopted-graphs", "graphs that were captured keep the old controls",
             "self.steps.sampling != self.sampling:", "False:"),
        ],
    ),
    "cores/run/progress.py": (
        PROGRESS,
        [
            ("lines-terminal", "a line a minute on a terminal too",
             "ON_TERMINAL if self.terminal else IN_FILE", "IN_FILE"),
            ("pace-resumed", "the pace counts steps of before the run went on",
             "step - self.done", "step"),
            ("last-line", "the last step has no line",
             "self.said_at is None or step == self.total", "self.said_at is None"),
            ("next-overwrite", "the next command replaces what is finished",
             'not in ("--resume", "--overwrite")', 'not in ("--resume",)'),
        ],
    ),
    "cores/runtime/screen.py": (
        PROGRESS,
        [
            ("bar-stays", "what is written stands behind the bar",
             "        erase()\n        with contextlib.suppress(OSError, ValueError):  # closed",
             "        with contextlib.suppress(OSError, ValueError):  # closed"),
        ],
    ),
    "cores/run/folder.py": (
        PRIVACY,
        [
            ("private-state", "state.json has the words of an error",
             "{error if quotes else UNSAID}", "{error}"),
            ("private-log", "log.txt has the words of an error",
             "or LOG.path is None or not quotes", "or LOG.path is None"),
        ],
    ),
    "cores/rewards/call.py": (
        PRIVACY,
        [
            ("private-prints", "log.txt has what reward functions print",
             "with LOG.quoting():", "if True:"),
        ],
    ),
    "cores/training/ppo.py": (
        PRIVACY,
        [
            ("private-checkpoint", "checkpoints have the rows of the evaluation before",
             "found if config.logging.samples else", "found if True else"),
        ],
    ),
    "cores/data/formats.py": (
        CHAT,
        [
            ("votes-ties", "votes without a winner are empty replies",
             "dropped = dropped or VOTED.get(", "dropped = dropped or {}.get("),
        ],
    ),
    "scripts/chat/server.py": (
        CHAT,
        [
            ("chat-host", "any Host is served",
             "if own and origin in", "if origin in"),
            ("chat-origin", "any Origin is served",
             'if own and origin in (None, f"http://{host}")', "if own"),
            ("chat-left", "a browser that left is answered to the end",
             "if not self.connection.recv(1, MSG_PEEK):", "if False:"),
            ("chat-blind", "names and scores before the vote",
             "seen = {} if blind else", "seen ="),
        ],
    ),
    "scripts/chat/votes.py": (
        CHAT,
        [
            ("votes-swapped", "the winner is rejected",
             '"chosen": won.text, "rejected": lost.text',
             '"chosen": lost.text, "rejected": won.text'),
            ("votes-twice", "an answer is voted on twice",
             "    of.voted = True\n", ""),
        ],
    ),
}  # fmt: skip
