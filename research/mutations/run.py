"""Mutation check: bugs planted one at a time, and which test catches each.

    python research/mutations/run.py [--only REGEX] [--workers 2] [--quick] [--check] [--save FILE]
    python research/mutations/run.py --write FILE...

Each bug of plan.py is planted into a copy of the code. The tests named with it run first, then all
of tests/unit and tests/parity, then the integration tests in INTEGRATION, up to the first failure;
with --quick only those named, so what is left may be caught by others. At the end the tests that
caught something run on the code as it is, where they must pass. Without --only and --quick the
result is written to docs/mutations.md. A slice of the plan (--only) leaves its outcomes in the file
of --save, and --write makes the page of such files: of what they hold, and no more. Exit status 1
if fewer than 95% are caught.
"""

import argparse
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a plain script

from research.mutations import report, sessions  # noqa: E402
from research.mutations.plan import Mutation, check, plan, planted  # noqa: E402
from research.mutations.sessions import OWN_TEST, Outcome, Session, copy_code  # noqa: E402

INTEGRATION = ("tests/integration/test_learning.py",)
"""Fast ones that may catch what nothing else does."""
LIMIT = 60.0
"""Seconds for one test: the slowest takes 3, so a bug that makes one take this long is seen."""
POLL = 0.05
"""Seconds between looks at the running sessions."""


@dataclass
class Trial:
    """One mutation on its way through the tests."""

    mutation: Mutation
    place: Path
    waiting: list[list[str]] = field(default_factory=list)
    """Arguments of the sessions still to run."""
    session: Session | None = None
    seconds: float = 0.0

    def start(self, original: Path, quick: bool) -> None:
        """Plant the bug and run the tests named with it."""
        m = self.mutation
        copy_code(original, self.place)
        file = self.place / m.file
        file.write_text(planted(m, file.read_text(encoding="utf-8")), encoding="utf-8")
        others = [f"--ignore={test}" for test in (*m.tests, OWN_TEST)]
        if not quick:
            self.waiting = [["tests/unit", "tests/parity", *others], list(INTEGRATION)]
        self.session = Session(self.place, list(m.tests))

    def poll(self) -> Outcome | None:
        """The outcome, once a test failed or all passed."""
        assert self.session is not None, "started"
        outcome = self.session.poll(LIMIT)
        if outcome is None:
            return None
        self.seconds += outcome.seconds
        if outcome.failed is None and self.waiting:
            self.session = Session(self.place, self.waiting.pop(0))
            return None
        return Outcome(outcome.failed, self.seconds)


def run_all(
    mutations: list[Mutation], workers: int, quick: bool, scratch: Path
) -> dict[str, Outcome]:
    """Each mutation's outcome, by its id."""
    original = scratch / "original"
    copy_code(ROOT, original)
    _finish(Session(original, ["--collect-only", "tests"]))  # leaves compiled files to be copied
    left, running = list(enumerate(mutations)), list[Trial]()
    outcomes: dict[str, Outcome] = {}
    try:
        while left or running:
            while left and len(running) < workers:
                i, mutation = left.pop(0)
                running.append(Trial(mutation, scratch / f"m{i}"))
                running[-1].start(original, quick)
            time.sleep(POLL)
            for trial in list(running):
                outcome = trial.poll()
                if outcome is not None:
                    running.remove(trial)
                    outcomes[trial.mutation.id] = outcome
                    sessions.remove(trial.place)
                    line = f"{trial.mutation.id:<34} {outcome.failed or 'NOT CAUGHT'}"
                    print(
                        f"{len(outcomes):3}/{len(mutations)}  {line}  {outcome.seconds:.0f} s",
                        flush=True,
                    )
    finally:
        for trial in running:  # only after an error or a signal
            if trial.session is not None:
                trial.session.stop()
    _control(original, outcomes)
    return {m.id: outcomes[m.id] for m in mutations}


def _control(original: Path, outcomes: dict[str, Outcome]) -> None:
    """SystemExit if a test that caught a bug fails without one too."""
    failed = {outcome.failed.partition(" (")[0] for outcome in outcomes.values() if outcome.failed}
    outcome = _finish(Session(original, sorted(failed - {"collection"})) if failed else None)
    if outcome is not None and outcome.failed:
        sys.exit(f"{outcome.failed} fails without any bug: mend that first, nothing is shown.")


def _finish(session: Session | None) -> Outcome | None:
    outcome = None
    while session is not None and outcome is None:
        time.sleep(POLL)
        outcome = session.poll(LIMIT)
    return outcome


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Plant bugs, see which test catches each.")
    parser.add_argument("--only", default="", help="regular expression in the names of the bugs")
    parser.add_argument("--workers", type=int, default=2, help="bugs tried side by side")
    parser.add_argument("--quick", action="store_true", help="only the tests named with each")
    parser.add_argument("--check", action="store_true", help="only see that each can be planted")
    parser.add_argument("--save", type=Path, help="JSON of the outcomes, for --write")
    parser.add_argument("--write", type=Path, nargs="+", help="make the page of saved outcomes")
    args = parser.parse_args()
    if args.write:
        report.write(plan(), sessions.saved(args.write))
        return
    mutations = [m for m in plan() if re.search(args.only, m.id)]
    try:
        check(mutations)
    except ValueError as error:
        sys.exit(str(error))
    print(f"{len(mutations)} bugs can be planted", flush=True)
    if args.check:
        return
    sessions.preload()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # copies and children go too
    with tempfile.TemporaryDirectory(prefix="tristage-mutations-") as scratch:
        outcomes = run_all(mutations, args.workers, args.quick, Path(scratch).resolve())
    caught = sum(outcome.failed is not None for outcome in outcomes.values())
    print(f"{caught} of {len(mutations)} caught")
    if args.save is not None:
        sessions.save(outcomes, args.save)
    if not args.only and not args.quick:
        report.write(mutations, outcomes)
    sys.exit(int(caught < report.WANTED * len(mutations)))


if __name__ == "__main__":
    main()
