"""What goes on beside the steps on the main process: the doctor's lines and the report. Neither can
end a run, and the report takes a fiftieth of its time at most."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cores.config import Config, plain
from cores.report import RULES, Finding, Watch, json_lines, write_report
from cores.runtime.launch import Launch
from cores.runtime.screen import LOG

EVERY = 60.0
"""Seconds between two reports at least."""
SHARE = 50
"""The time between two reports to the time that one takes, at least."""


class Beside:
    """Of one run of a stage."""

    def __init__(
        self, config: Config, stage: str, folder: Path, launch: Launch, facts: dict[str, Any]
    ) -> None:
        self.root, self.launch = folder.parent, launch
        told = {"config": plain(config), "data": facts.get("data") or {}, "metrics": {}}
        self.watch = Watch(RULES, stage, told)
        self.next_report = time.monotonic() + EVERY
        self.failing: set[str] = set()
        self._try("doctor", lambda: self._begin(folder / "metrics.jsonl"))

    def _begin(self, rows: Path) -> None:
        before = json_lines(rows)  # of a run that goes on: what they tell was said
        for row in before:
            self.watch.add(row)
        found = self.watch.look("data")
        self._say([] if before else found)

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics was written."""
        self._try("doctor", lambda: self._say(self.watch.add(row)))
        if time.monotonic() >= self.next_report:
            self.report()

    def end(self, facts: dict[str, Any]) -> None:
        """The stage's own figures are known."""
        self.watch.facts |= {k: facts[k] for k in ("data", "metrics") if facts.get(k)}
        self._try("doctor", lambda: self._say(self.watch.look("data") + self.watch.look("end")))

    def report(self) -> None:
        """Write <output_dir>/report.html anew."""
        started = time.monotonic()
        self._try("report", lambda: write_report(self.root))
        now = time.monotonic()
        self.next_report = now + max(EVERY, SHARE * (now - started))

    def _say(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.launch.say(finding.line())

    def _try(self, what: str, action: Callable[[], object]) -> None:
        """A failure is said once."""
        try:
            action()
        except Exception as error:  # whatever it is, the run goes on
            if what not in self.failing:
                with LOG.quoting():
                    self.launch.say(f"note: the {what} failed: {type(error).__name__}: {error}")
            self.failing.add(what)
