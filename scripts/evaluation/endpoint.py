"""An OpenAI-compatible server, as far as a judge asks it."""

import json
import os
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cores.errors import UserError

TIMEOUT = 120.0
"""Seconds for a question."""
PASSING = (408, 409, 425, 429)
"""Status codes, with those from 500 on, that pass."""


class PassingError(UserError):
    """What a server says that may answer a little later."""


class Endpoint:
    """The server at an address up to /v1; its key is in OPENAI_API_KEY, if it wants one."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def first_model(self) -> str:
        """The model that it names first; UserError, as of all here, where it does not."""
        found = self._got("/models", None)
        try:
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise self._failed("names no model; give one by --judge-model") from None

    def answer(self, model: str, question: str) -> str:
        """What `model` says to it, at temperature 0."""
        said = {"role": "user", "content": question}
        told = {"model": model, "messages": [said], "temperature": 0, "max_tokens": 1024}
        found = self._got("/chat/completions", told)
        try:
            return str(found["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise self._failed(f"answers {json.dumps(found)[:200]}") from None

    def _got(self, place: str, told: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {secret}"
        data = None if told is None else json.dumps(told).encode()
        try:
            with urlopen(Request(self.url + place, data, headers), timeout=TIMEOUT) as answer:
                return json.load(answer)
        except HTTPError as error:
            said = error.read(300).decode(errors="replace")
            passes = error.code in PASSING or error.code >= 500
            raise self._failed(f"answers {error.code} ({said})", passes) from None
        except (HTTPException, OSError, ValueError) as error:
            why = f"cannot be asked ({getattr(error, 'reason', error)})"
            raise self._failed(why, passes=True) from None

    def _failed(self, why: str, passes: bool = False) -> UserError:
        return (PassingError if passes else UserError)(
            f"--judge {self.url}: {why}. Give the address up to /v1 of an OpenAI-compatible server "
            "that runs, its key in OPENAI_API_KEY if it wants one, or another judge."
        )
