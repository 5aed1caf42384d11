"""Write the report of a run, finished or not: one HTML file that asks the network for nothing.

    python scripts/report.py RUN

RUN is an output_dir; the file is RUN/report.html. Stages write it too, at their end and once a
minute while they run. docs/output.md says what it shows.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.report import write_report
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write RUN/report.html.")
    parser.add_argument("run", type=Path, help="output_dir of the stages")
    path = write_report(parser.parse_args(argv).run.expanduser())
    print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    guarded(main)
