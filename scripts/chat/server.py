"""The page's server: the standard library's, on this machine alone.

Only a browser that shows our own page may ask: the Host header must name this machine, which keeps
out names that were made to point here (DNS rebinding), and Origin, where there is one, must be the
page's own, which keeps out other sites' forms and scripts. Else 403.
"""

import base64
import hashlib
import json
import random
import re
import string
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from select import select
from socket import MSG_PEEK, socket
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from cores.data.values import Turn
from cores.errors import UserError
from scripts.chat import votes
from scripts.chat.voices import Controls, Reply, Voices

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
LOCAL = ("localhost", "127.0.0.1", "[::1]")
ROLES = ("system", "user", "assistant")
LARGEST = 2**20
"""Bytes of a request at most."""
KEPT = 100
"""Answers that may still be voted on."""


def policy(page: str) -> str:
    """Content-Security-Policy of `page`: its own script and style, its own server, nothing else."""
    own = {}
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        own[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{own['script']}'; style-src "
        f"'sha256-{own['style']}'; connect-src 'self'; img-src data:; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'none'"
    )


class Listener(Event):
    """Set once nobody listens any more: also while nothing is sent, as behind a gate."""

    def __init__(self, connection: socket) -> None:
        super().__init__()
        self.connection = connection

    def is_set(self) -> bool:
        """Whether the browser has closed the connection, or it was set."""
        if not super().is_set() and select([self.connection], [], [], 0)[0]:
            try:
                if not self.connection.recv(1, MSG_PEEK):
                    self.set()
            except ConnectionError:
                self.set()
        return super().is_set()


class Server(ThreadingHTTPServer):
    """Holds the models, and the answers that may be voted on. One answer is made at a time: whoever
    asks meanwhile, in another tab, waits for it."""

    daemon_threads = True

    def __init__(
        self,
        voices: Voices,
        controls: Controls,
        file: Path,
        keep: bool,
        port: int,
        blind: bool = False,
    ) -> None:
        """`file`: where votes go, if `keep`; `blind`: how the page begins. OSError for a port that
        is taken."""
        self.voices, self.controls, self.file, self.keep = voices, controls, file, keep
        self.blind = blind
        self.rounds: dict[str, votes.Round] = {}
        self.speaking, self.voting = Lock(), Lock()
        self.draw = random.SystemRandom()
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def begun(self, asked: dict[str, Any]) -> tuple[str, votes.Round, list[str]]:
        """A new round, its id, and the stages in the order of their letters."""
        controls = self.controls.changed(asked)
        blind, stages = asked.get("blind") is True, list(self.voices.engines)
        if blind:
            self.draw.shuffle(stages)
        name = f"{self.draw.getrandbits(64):x}"
        made = votes.Round(conversation(asked), controls, blind)
        while len(self.rounds) >= KEPT:
            self.rounds.pop(next(iter(self.rounds)))
        self.rounds[name] = made
        return name, made, stages


def conversation(asked: dict[str, Any]) -> list[Turn]:
    """The turns of a request, the last one the user's; UserError for what is no conversation."""
    turns: Any = asked.get("turns")
    good = isinstance(turns, list) and bool(turns) and all(
        isinstance(t, dict) and t.get("role") in ROLES and isinstance(t.get("content"), str)
        for t in turns
    )  # fmt: skip
    if not good or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise UserError("turns: must be a list of turns, the last of them the user's, not empty.")
    return [{"role": t["role"], "content": t["content"]} for t in turns]


def told(letter: str, reply: Reply, blind: bool) -> dict[str, Any]:
    """A finished reply as an event; who it is, and its score, not before the vote if blind."""
    seen = {} if blind else {"stage": reply.stage, "score": reply.score}
    more = {"tokens": reply.tokens, "ended": reply.ended, "first": round(reply.first, 4)}
    return {"letter": letter, "text": reply.text, "done": True, **more, **seen}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing: what people ask is theirs."""

    def do_GET(self) -> None:
        """The page, and what it needs to know."""
        if self._foreign():
            return
        if self.path == "/":
            self._send(200, PAGE.encode(), "text/html; charset=utf-8", policy(PAGE))
        elif self.path == "/state":
            s = self.server
            controls = dict(vars(s.controls))
            counted = votes.count(s.file) if s.keep else None
            given = {"stages": list(s.voices.engines), "controls": controls, "votes": counted}
            given |= {"blind": s.blind, "most": s.voices.positions, "raw": s.voices.raw}
            self._json(200, given)
        else:
            self._json(404, {"error": "there is nothing at this address"})

    def do_POST(self) -> None:
        """A question, answered by server-sent events, or a vote."""
        if self._foreign():
            return
        try:
            asked = self._body()
            if self.path == "/ask":
                self._answer(asked)
            elif self.path == "/vote":
                self._vote(asked)
            else:
                self._json(404, {"error": "there is nothing at this address"})
        except UserError as error:
            self._json(400, {"error": str(error)})
        except ConnectionError:
            raise
        except Exception as error:
            traceback.print_exc()
            self._json(500, {"error": f"{type(error).__name__}: {error}"})

    def _foreign(self) -> bool:
        """Refuse a request that our page on this machine did not make."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        own = re.sub(r":\d+$", "", host) in LOCAL  # any port: it may come through a tunnel
        if own and origin in (None, f"http://{host}"):
            return False
        self.close_connection = True
        self._json(403, {"error": "this page is for the machine that it runs on"})
        return True

    def _body(self) -> dict[str, Any]:
        self.close_connection = True  # what is not read would be taken for the next request
        if urlsplit(self.headers.get("Content-Type", "")).path.strip() != "application/json":
            raise UserError("Content-Type must be application/json.")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            raise UserError(f"Content-Length must be there, and at most {LARGEST}.")
        try:
            found = json.loads(self.rfile.read(int(length)))
        except ValueError:
            raise UserError("the body is no JSON.") from None
        if not isinstance(found, dict):
            raise UserError("the body must be a JSON object.")
        return found

    def _answer(self, asked: dict[str, Any]) -> None:
        server = self.server
        name, made, stages = server.begun(asked)
        letters = dict(zip(stages, string.ascii_uppercase, strict=False))
        server.voices.row(made.turns, made.controls)  # refused before anything is sent
        stop = Listener(self.connection)
        with server.speaking:
            self.send_response(200)
            self._headers("text/event-stream; charset=utf-8")
            self.end_headers()
            shown = [{"letter": letters[s]} | ({} if made.blind else {"stage": s}) for s in stages]
            try:
                self._event({"round": name, "seed": made.controls.seed, "answers": shown})
                said_by = server.voices.answer(made.turns, made.controls, stop, made.blind)
                for stage, said in said_by:
                    self._event(self._of(made, letters[stage], said))
                self._event({"finished": name})
            except ConnectionError:  # the browser was told to stop
                stop.set()

    def _of(self, made: votes.Round, letter: str, said: str | Reply | Exception) -> dict[str, Any]:
        if isinstance(said, str):
            return {"letter": letter, "text": said}
        if isinstance(said, Reply):
            made.replies[letter] = said
            return told(letter, said, made.blind)
        known = isinstance(said, UserError)
        return {"letter": letter, "error": str(said) if known else f"{type(said).__name__}: {said}"}

    def _event(self, what: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(what)}\n\n".encode())
        self.wfile.flush()

    def _vote(self, asked: dict[str, Any]) -> None:
        server = self.server
        with server.voting:
            made = server.rounds.get(str(asked.get("round")))
            if made is None:
                raise UserError("there is no such answer any more; ask again.")
            count = votes.record(made, asked.get("pick"), server.file, server.keep)
        named = [told(letter, reply, blind=False) for letter, reply in sorted(made.replies.items())]
        self._json(200, {"rows": count, "votes": votes.count(server.file), "answers": named})

    def _json(self, status: int, what: dict[str, Any]) -> None:
        self._send(status, json.dumps(what).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str, allowed: str = "") -> None:
        self.send_response(status)
        self._headers(kind)
        if allowed:
            self.send_header("Content-Security-Policy", allowed)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _headers(self, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
