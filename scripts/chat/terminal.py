"""The chat without a browser: a line of input, each stage's answer, a vote."""

import random
import traceback
from dataclasses import replace
from pathlib import Path
from threading import Event

from cores.data.values import Turn
from cores.errors import UserError
from scripts.chat import votes
from scripts.chat.voices import Controls, Reply, Voices

HELP = """A line is asked of every stage. Others:
  /new                 begin a new conversation
  /set NAME VALUE      temperature, top_p, max_new_tokens or seed
  /quit                or Ctrl-D"""


def talk(voices: Voices, controls: Controls, blind: bool, file: Path, keep: bool) -> None:
    """Until the input ends."""
    turns: list[Turn] = []
    print(f"{', '.join(voices.engines)} answer. {HELP}")
    while (line := _asked("\nyou: ")) is not None and line != "/quit":
        try:
            if line == "/new":
                turns = []
            elif line.startswith("/set "):
                controls = _set(controls, line.split()[1:])
            elif line.startswith("/"):
                print(HELP)
            elif line.strip():
                asked = [*turns, {"role": "user", "content": line}]
                said = _round(voices, asked, controls, blind, file, keep)
                turns = [*asked, {"role": "assistant", "content": said}] if said else turns
                controls = replace(controls, seed=(controls.seed + 1) % 2**32)
        except UserError as error:
            print(error)
        except Exception:  # of one line; the next may be another
            traceback.print_exc()


def _round(
    voices: Voices, turns: list[Turn], controls: Controls, blind: bool, file: Path, keep: bool
) -> str:
    """Answers and their vote; the reply that the conversation goes on from, empty for none."""
    stages = list(voices.engines)
    if blind:
        random.SystemRandom().shuffle(stages)
    made, found = votes.Round(turns, controls, blind), {}
    for stage, said in voices.answer(turns, controls, Event(), blind):
        if isinstance(said, Exception):
            print(f"{'a stage' if blind else stage}: {said}")
        elif isinstance(said, Reply):
            found[stage] = said
    for number, stage in enumerate((s for s in stages if s in found), 1):
        made.replies[str(number)] = found[stage]
        print(f"\n{_name(number, found[stage], shown=not blind)}\n  {found[stage].text}")
    letters = list(made.replies)
    if keep and len(letters) > 1:
        choice = _asked(f"best? {', '.join(letters)}, t (tie), b (all bad), Enter (no vote): ")
        pick = {"t": "tie", "b": "both bad"}.get(choice or "", choice or "")
        if pick:
            count = votes.record(made, pick, file, keep)
            print(f"{count} row{'s' * (count != 1)} in {file}")
            if blind:
                print("; ".join(_name(n, r, True) for n, r in made.replies.items()))
        if pick in made.replies:
            return made.replies[pick].text
    return made.replies[letters[-1]].text if letters else ""


def _name(number: int | str, reply: Reply, shown: bool) -> str:
    score = "" if reply.score is None else f", score {reply.score:+.2f}"
    return f"{number}: {reply.stage}{score}" if shown else f"{number}:"


def _set(controls: Controls, words: list[str]) -> Controls:
    if len(words) != 2 or words[0] not in vars(controls):
        raise UserError(f"/set takes one of {', '.join(vars(controls))}, and a value.")
    name, text = words
    try:
        value = int(text) if name in ("seed", "max_new_tokens") else float(text)
    except ValueError:
        raise UserError(f"/set {name}: {text!r} is no number.") from None
    return controls.changed({name: value})


def _asked(question: str) -> str | None:
    """A line; None at the end of the input."""
    try:
        return input(question)
    except EOFError:
        return None
