"""A stand-in for an OpenAI-compatible server."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar


class Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible one that prefers what stands first, or says what it was told to say."""

    says = "Both are fine. [[A]]"
    fails: Callable[[str, int], int | None] = staticmethod(lambda text, times: None)
    """Of a question and how often it was asked before: a status to fail with."""
    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self._send({"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["model"] == "tiny"
        text = asked["messages"][0]["content"]
        self.asked[text] += 1
        if status := type(self).fails(text, self.asked[text] - 1):
            return self.send_error(status)
        self._send({"choices": [{"message": {"content": self.says}}]})

    def _send(self, value: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def endpoint() -> Iterator[str]:
    """Its address."""
    with HTTPServer(("127.0.0.1", 0), Server) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/v1"
        listening.shutdown()
