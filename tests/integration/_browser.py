"""Headless Chromium, driven over two pipes by its DevTools protocol: no package is needed."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One page of one browser."""

    def __init__(self, send: int, receive: int) -> None:
        self.send, self.receive, self.numbers = send, receive, count(1)
        self.left, self.session = b"", ""
        self.problems: list[str] = []
        """Errors of the page's script, and of its console."""
        self.asked: list[str] = []
        """Addresses that it asked for."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        number = next(self.numbers)
        said = {"id": number, "method": method, "params": parameters}
        said |= {"sessionId": self.session} if self.session else {}
        os.write(self.send, json.dumps(said).encode() + b"\0")
        while True:
            told = self._message()
            if told.get("id") == number:
                assert "error" not in told, told
                return dict(told["result"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.left:
            self.left += os.read(self.receive, 2**20)
        first, self.left = self.left.split(b"\0", 1)
        told: dict[str, Any] = json.loads(first)
        method, given = told.get("method"), told.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(given["exceptionDetails"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.problems.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked.append(given["request"]["url"])
        return told

    def open(self, address: str) -> None:
        """Go to a page, and wait until it is there."""
        told = self.call("Page.navigate", url=address)
        assert "errorText" not in told, told
        self.until("document.readyState === 'complete' && document.body !== null")

    def run(self, script: str) -> Any:
        """The value of an expression on the page, awaited."""
        told = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, script: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"{script}: {self.run('document.body.innerText')}"
            time.sleep(0.05)

    def look(self, width: int, height: int, dark: bool, path: Path | None = None) -> None:
        """Take on a screen's size and colours, and a picture of the whole page."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        if path is not None:
            shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
            path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser; the test is skipped where there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is installed ({', '.join(NAMES)})")
    ours, theirs = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # It reads commands from file 3 and answers in file 4.
        shell = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        process = subprocess.Popen(
            ["bash", "-c", shell, program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield Browser(ours[1], theirs[0])
        finally:
            process.terminate()
            process.wait(10)
            for end in (*ours, *theirs):
                os.close(end)
