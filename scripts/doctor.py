"""Say what is wrong with a run, finished or not.

    python scripts/doctor.py RUN [--json OUT]

RUN is an output_dir. Exit status 1 if anything is found, 0 if nothing is, 2 if RUN cannot be read.
OUT is a list of findings with rule, stage, step, evidence, cause and change. docs/doctor.md tells
the rules.
"""

import argparse
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.errors import UserError
from cores.report import RULES, Finding, examine, read_run
from cores.runtime.cli import guarded

UNREADABLE = 2
"""Exit status, also where OUT cannot be written."""


def fail(why: str) -> NoReturn:
    """End with a paragraph."""
    print(textwrap.fill(f"error: {why}", 100, break_on_hyphens=False), file=sys.stderr)
    raise SystemExit(UNREADABLE) from None


def shown(finding: Finding) -> str:
    """Some lines for a person."""
    where = finding.stage + (f", step {finding.step}" if finding.step is not None else "")
    texts = [f"{finding.evidence}.", f"Cause: {finding.cause}", f"Change: {finding.change}"]
    folded = [textwrap.fill(t, 98, initial_indent="  ", subsequent_indent="  ") for t in texts]
    return "\n".join([f"{finding.rule} ({where})", *folded])


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Say what is wrong with a run.")
    parser.add_argument("run", type=Path, help="output_dir of the stages")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the findings there too")
    arguments = parser.parse_args(argv)
    try:
        records = read_run(arguments.run.expanduser())
        findings = examine(RULES, records)
    except UserError as error:
        fail(str(error))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        fail(
            f"{arguments.run}: cannot be read ({type(error).__name__}: {error}): a file holds what "
            "no stage writes. If nobody has edited it, this is a mistake of the doctor's."
        )
    if arguments.json is not None:
        told = json.dumps([asdict(one) for one in findings], indent=2, ensure_ascii=False)
        try:
            arguments.json.write_text(f"{told}\n", encoding="utf-8")
        except OSError as error:  # status 1 would say that something was found
            fail(f"--json {arguments.json}: cannot be written ({error.strerror}). Name another.")
    looked = ", ".join(
        f"{r.name} ({len(r.rows)} rows{'' if r.finished else ', unfinished'})" for r in records
    )
    print("\n\n".join([*map(shown, findings), f"{len(findings)} found in {looked}"]))
    raise SystemExit(1 if findings else 0)


if __name__ == "__main__":
    guarded(main)
