"""How long report.html takes to open in headless Chromium: from navigation to the load event.

    python scripts/bench/report_page.py [REPORT.html] [--shots FOLDER]

Without a file, of a run of 500 updates made for the tests. Ten times; prints the size, median and
largest. --shots: pictures of it, light, dark and on a phone. Needs pytest and chromium.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.report import write_report
from cores.runtime.cli import guarded

ROOT = Path(__file__).resolve().parents[2]
TIMES = 10
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
SHOTS = {"light": (1200, 900, False), "dark": (1200, 900, True), "phone": (390, 844, True)}


def main(argv: list[str]) -> None:
    """Open and print."""
    parser = argparse.ArgumentParser(description="How long report.html takes to open.")
    parser.add_argument("page", type=Path, nargs="?", help="a report; made if not given")
    parser.add_argument("--shots", type=Path, metavar="FOLDER", help="where pictures go")
    given = parser.parse_args(argv)
    sys.path += [str(ROOT / "tests" / part) for part in ("integration", "unit")]

    from _browser import browser
    from test_report import make_run

    with tempfile.TemporaryDirectory() as folder, browser() as b:
        page = given.page or write_report(make_run(Path(folder) / "run"))
        found = []
        for _ in range(TIMES):
            b.look(1200, 900, dark=False)
            b.open(page.resolve().as_uri())
            b.until(f"{LOADED} > 0")
            found.append(b.run(LOADED))
            b.open("about:blank")
        median, size = statistics.median(found), page.stat().st_size / 1000
        print(f"{size:.0f} kB: {median:.0f} ms, at most {max(found):.0f} ms")
        for name, look in SHOTS.items() if given.shots else ():
            b.look(*look)
            b.open(page.resolve().as_uri())
            count = b.run("document.querySelectorAll('.plot').length")
            for i in range(count):  # a plot is drawn when it comes near the window
                b.run(f"document.querySelectorAll('.plot')[{i}].scrollIntoView()")
                b.until(f"document.querySelectorAll('.plot')[{i}].querySelector('canvas') !== null")
            b.run("window.scrollTo(0, 0)")
            b.look(*look, given.shots / f"{name}.png")


if __name__ == "__main__":
    guarded(main)
