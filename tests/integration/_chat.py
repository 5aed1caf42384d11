"""A chat server on finished stages, asked as a browser asks."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from typing import Any

from cores.config import parse_config
from cores.runtime.launch import launch
from scripts.chat.server import Server
from scripts.chat.voices import Voices


@contextmanager
def serving(words: list[Any], gate: Any = None, blind: bool = False) -> Iterator[Server]:
    """The server of a run with this configuration, on a port that is free."""
    config = parse_config([str(word) for word in words], "chat.py", "")
    voices = Voices(config, launch(config), gate)
    file, keep = Path(config.output_dir) / "votes.jsonl", config.logging.samples
    server = Server(voices, voices.default, file, keep, 0, blind)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def request(
    server: Server, method: str, path: str, body: Any = None, **headers: str
) -> HTTPResponse:
    """One request; the body as JSON."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    sent = None if body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} if sent else {}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, sent, given | named)
    return connection.getresponse()


def ask(server: Server, text: str, **more: Any) -> list[dict[str, Any]]:
    """The events of an answer."""
    turns = more.pop("turns", [{"role": "user", "content": text}])
    reply = request(server, "POST", "/ask", {"turns": turns, **more})
    told = reply.read().decode()
    assert reply.status == 200, told
    return [json.loads(part.removeprefix("data: ")) for part in told.split("\n\n") if part]


def vote(server: Server, events: list[dict[str, Any]], pick: str) -> tuple[int, dict[str, Any]]:
    """Status and answer of a vote on what `ask` gave."""
    reply = request(server, "POST", "/vote", {"round": events[0]["round"], "pick": pick})
    return reply.status, json.loads(reply.read())


def final(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The finished replies by letter."""
    return {event["letter"]: event for event in events if event.get("done")}
