"""Templates of our own: texts around each turn, and which of them are learned."""

from dataclasses import dataclass
from typing import Literal

from cores.config.template import RoleTemplate, TemplateSection
from cores.data.values import Turn


@dataclass(frozen=True)
class Segment:
    """A stretch of a row's text."""

    role: Literal["prompt", "assistant", "text"]
    """prompt: what the model is given. assistant: what it replies, its stop token included.
    text: a text without turns, stop token included."""
    text: str
    """Verbatim, special tokens written out."""
    train: bool
    """Its tokens carry loss in stage 1."""


def written(turns: list[Turn], section: TemplateSection, eos: str) -> list[Segment]:
    """The segments of a conversation under kinds roles and none, the stop token `eos` after each
    reply. One that does not end with a reply ends where the reply would begin."""
    segments: list[Segment] = []
    inside, rounds = "", 0
    for i, turn in enumerate(turns):
        role, last = turn["role"], i == len(turns) - 1
        around = _around(section, role, last)
        content = replaced(turn["content"].strip() if section.strip else turn["content"], section)
        if role == "system" and section.system_in_user:
            inside += around.prefix + content + around.suffix
            continue
        if role == "user":
            content, inside = inside + content, ""
        elif not any(later["role"] == "user" for later in turns[i:]):
            _push(segments, inside, False)
            inside = ""
        before, after = around.prefix.replace("{round}", str(rounds)), around.suffix
        rounds += role == "user"
        if section.marked:
            before, content, after = _parted(content, before, after, role)
        else:
            content, after = around.opening + content, after + (around.stop or "")
        if role == "assistant" and around.stop is None and eos not in content + after:
            after += eos
        trained = "none" if "untrained" in turn else _trained(section, role, last)
        _add(segments, role, (before, content, after), trained, eos)
    _push(segments, inside, False)
    if turns[-1]["role"] != "assistant" and not section.marked:
        prefix = _around(section, "assistant", True).prefix
        _push(segments, prefix.replace("{round}", str(rounds)), False)
    return segments


def replaced(text: str, section: TemplateSection) -> str:
    """`text` as the section's `replace` writes it."""
    for old, new in section.replace.items():
        text = text.replace(old, new)
    return text


def _around(section: TemplateSection, role: str, last: bool) -> RoleTemplate:
    if section.kind == "none":
        return RoleTemplate()
    if role == "assistant" and not last and section.earlier != RoleTemplate():
        return section.earlier
    around: RoleTemplate = getattr(section, role)
    return around


def _trained(section: TemplateSection, role: str, last: bool) -> str:
    """What of a turn is learned."""
    around = _around(section, role, last)
    other = role == "assistant" and around is section.earlier
    return around.train or ("content" if role == "assistant" and not other else "none")


def _parted(text: str, prefix: str, suffix: str, role: str) -> tuple[str, str, str]:
    """A turn that brings its markers: prefix, what stands between, suffix; without one of them all
    of it is marker, as there is nothing between. Of a reply only the prefix is apart."""
    if role == "assistant":
        prefix = prefix if text.startswith(prefix) else ""
        return prefix, text[len(prefix) :], ""
    between = text.startswith(prefix) and text.endswith(suffix)
    if not between or len(text) < len(prefix) + len(suffix):
        return text, "", ""
    return prefix, text[len(prefix) : len(text) - len(suffix)], suffix


def _add(
    segments: list[Segment], role: str, parts: tuple[str, str, str], trained: str, eos: str
) -> None:
    """A turn's prefix, content and suffix with stop."""
    before, content, after = parts
    _push(segments, before, trained in ("markers", "prefix", "all"))
    if role != "assistant":
        _push(segments, content, trained in ("content", "all"))
        _push(segments, after, trained not in ("none", "prefix"))
        return
    text = content + after
    end = text.rfind(eos) + len(eos) if eos in text else len(text)
    segments.append(Segment("assistant", text[:end], trained != "none"))
    _push(segments, text[end:], trained != "none")


def _push(segments: list[Segment], text: str, train: bool) -> None:
    """What the model is given, as one segment as far as it is learned alike."""
    if not text:
        return
    if segments and (segments[-1].role, segments[-1].train) == ("prompt", train):
        text = segments.pop().text + text
    segments.append(Segment("prompt", text, train))
