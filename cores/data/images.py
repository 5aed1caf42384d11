"""Images of rows: where they stand in a text, and the shapes of rows that are read for them.

In a text an image is `MARK`, which no file can bring unseen, until the template has put the turns
together; then it is the base's image token, as often as the base makes tokens of an image.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cores.config.data import OneSource
from cores.config.schema import Config
from cores.config.template import ImageTemplate
from cores.data.encode import IGNORED
from cores.data.formats import Example
from cores.data.image_files import INTERLEAVED, captioned, check_options, found_image, image_names
from cores.data.roles import Segment
from cores.data.sources import Row
from cores.data.values import Turn, role_of, short
from cores.draws import key
from cores.errors import UserError

WRITTEN = "<image>"
"""How rows say where an image stands."""
MARK, CHUNK = "\ufdd0", "\ufdd1"
"""An image, and the end of the text that belongs to one: characters that are for such inner use."""
SIGNS, WORDS = r"[.!\"()*#:;~]", 50
"""Signs that are no part of a clean caption, and its longest (BLIP's rule, Li et al. 2022)."""
COLUMNS = ("image", "images")
MATCHED = ("matched_text_index", "matched_sim", "image_name")
"""Of one of its images."""
SIDES = ("chosen_ids", "rejected_ids", "ids", "input_ids")
"""Ids of a row of stage 2 or 3."""
TURNS = ("messages", "conversations", "prompt")
OWN = ("image", "path", "url")
"""Keys of a part that name its file."""
TEXTS = ("prompt", "instruction", "text")
"""Columns of turns, or of a text, that an image stands in."""


@dataclass(frozen=True)
class ImageTokens:
    """What stands for an image in a row."""

    token: str
    id: int
    count: int
    """Of these tokens, for one image."""


def shown(
    config: Config, source: OneSource, path: str, rows: list[Row], key: str, reads: bool
) -> tuple[list[Row], OneSource]:
    """The rows of `path` with their images, and `MARK` where they stand, as the formats read them;
    and the source with the format that they have now.

    Unless the base `reads` images nothing is changed. UserError for an image that is missing,
    broken, elsewhere, or stands nowhere; and for options of images that nothing would read.
    """
    if not reads:
        check_options(config, source, path, None, key)
        return rows, source
    maker = Shown(config, source, path)
    read = [maker.row(row, number) for number, row in enumerate(rows)]
    if path.startswith(source.path or ""):  # held-out rows of their own have what they have
        check_options(config, source, path, [*zip(rows, read, strict=True)], key)
    return read, replace(source, format=None) if source.format == "caption" else source


@dataclass(frozen=True)
class Shown:
    """Makes of the rows of one source, which lie at `path`, what the formats read."""

    config: Config
    source: OneSource
    path: str

    def row(self, row: Row, number: int) -> Row:
        """One of them; `number` draws its request."""
        shown = [name for name in COLUMNS if name not in self.source.ignore]
        columns = {k: v for k, v in row.columns.items() if k not in shown}
        if all(isinstance(columns.get(name), list) for name in INTERLEAVED):
            return self._interleaved(row, columns)
        names = [name for column in shown for name in image_names(row, column)]
        if captioned(self.source, row):
            columns = self._caption(row, columns, len(names), number)
        elif names:
            _place(columns, len(names), row.where, self.config.template.image)
        return replace(row, columns=columns, images=self._found(names, row.where))

    def _found(self, names: list[str], where: str) -> tuple[str, ...]:
        path = Path(self.path).expanduser()
        folder = (path if path.is_dir() else path.parent) / (self.source.image_folder or "")
        return tuple(found_image(folder, name, where) for name in names)

    def _caption(
        self, row: Row, columns: dict[str, Any], images: int, number: int
    ) -> dict[str, Any]:
        """The conversation of a row whose reply is told of its image alone."""
        turns = columns.pop("messages", None) or columns.pop("conversations", None)
        replies = [t for t in turns or [] if role_of(t) == "assistant"]
        said = [turn.get("content", turn.get("value")) for turn in replies]
        caption = columns.pop("caption", said[0] if len(said) == 1 else None)
        if not images or not isinstance(caption, str):
            raise UserError(
                f"{row.where}: format caption reads an image and a `caption`, or a conversation "
                f"with one reply; found are {images} images and the columns "
                f"{', '.join(row.columns)}. Correct the row, or choose another format."
            )
        if self.config.template.image.clean:
            caption = " ".join(re.sub(SIGNS, " ", caption.lower()).split()[:WORDS])
        asked = self.config.template.image.requests
        request = asked[key(self.config.seed, "requests", number) % len(asked)] if asked else ""
        ask = {"role": "user", "content": MARK * images + request}
        return {**columns, "messages": [ask, {"role": "assistant", "content": caption}]}

    def _interleaved(self, row: Row, columns: dict[str, Any]) -> Row:
        """MMC4: each image before the sentence that it is most like, where that is enough; of
        several at one sentence the first, so that none stands before nothing."""
        texts = [str(text) for text in columns.pop("text_list")]
        found: dict[int, str] = {}
        for info in columns.pop("image_info"):
            try:
                at, like, name = (info[k] for k in MATCHED)
                full = len(found) == self.source.most_images
                if like >= self.source.similarity and at not in found and not full:
                    texts[at] = CHUNK + MARK + texts[at]
                    found[at] = str(name)
            except (KeyError, TypeError, IndexError):
                raise UserError(
                    f"{row.where}: an item of 'image_info' needs {', '.join(MATCHED)} (the first a "
                    f"number below {len(texts)}), but is {str(info)[:100]}; correct the row."
                ) from None
        names = [found[at] for at in sorted(found)]
        text = " ".join(texts).replace(CHUNK, "", 1)  # nothing ends before the first image
        text = re.sub(f" ?({MARK}|{CHUNK}) ?", r"\1", text) + CHUNK
        return replace(row, columns={**columns, "text": text}, images=self._found(names, row.where))


def _place(columns: dict[str, Any], images: int, where: str, template: ImageTemplate) -> None:
    """Put `MARK` where the texts of a row say `<image>`; where none does, before the first text of
    a user (TRL's convention)."""
    holders = _holders(columns)
    texts = [_joined(holder[name], where) for holder, name in holders]
    count = sum(text.count(WRITTEN) + text.count(MARK) for text in texts)
    if not count and texts:
        texts[0] = MARK * images + texts[0]
    elif count != images:
        raise UserError(
            f"{where}: {images} images, and {WRITTEN} stands {count} times in the row; give an "
            "image for each, or leave all out to put them at the beginning."
        )
    for (holder, name), text in zip(holders, texts, strict=True):
        text = text.replace(WRITTEN, MARK)
        if template.place == "front" and MARK in text:
            text = MARK * text.count(MARK) + text.replace(MARK, "").strip()
        holder[name] = text


def _holders(columns: dict[str, Any]) -> list[tuple[Any, str]]:
    """Where a row's texts are, those of users: (dictionary, key), copies of what was read."""
    for name in TURNS:
        turns = columns.get(name)
        if isinstance(turns, list):
            copies = columns[name] = [dict(t) if isinstance(t, dict) else t for t in turns]
            asked = [turn for turn in copies if role_of(turn) == "user"]
            keys = [(turn, "content" if "content" in turn else "value") for turn in asked]
            return [(turn, key) for turn, key in keys if isinstance(turn.get(key), str | list)]
    return [(columns, name) for name in TEXTS if isinstance(columns.get(name), str)][:1]


def _joined(content: Any, where: str) -> str:
    """A turn's content; of a list of parts the texts, with `MARK` for images (TRL's convention).
    UserError for parts of other types, and for images that name a file of their own."""
    if isinstance(content, str):
        return content
    parts = [part if isinstance(part, dict) else {} for part in content]
    for part in parts:
        if part.get("type") not in ("image", "text") or any(part.get(name) for name in OWN):
            raise UserError(
                f"{where}: a part of a turn is {short(part)}; beside images a part has type text "
                "and its text, or type image alone: name the files in `images`, in their order."
            )
    return "".join(MARK if p.get("type") == "image" else str(p.get("text", "")) for p in parts)


def with_images(
    rows: list[list[Segment]], conversation: list[Turn], where: str, tokens: ImageTokens | None,
    template: ImageTemplate,
) -> list[list[Segment]]:  # fmt: skip
    """The segments of the rows that a conversation becomes, with image tokens in the place of
    `MARK`, if the base reads any. UserError where the template does not show all images."""
    if tokens is None:
        return rows
    images = sum(turn["content"].count(MARK) for turn in conversation)
    seen = sum(segment.text.count(MARK) for segment in rows[-1])
    if seen != images:
        raise UserError(
            f"{where}: the template shows {seen} of the {images} images of this conversation; set "
            "template.kind to roles."
        )
    text = template.before + tokens.token * tokens.count + template.after
    return [[part for s in row for part in _parts(s, text, template)] for row in rows]


def _parts(segment: Segment, image: str, template: ImageTemplate) -> Iterator[Segment]:
    """A segment with the text `image` for `MARK`; of an interleaved text, whose images are trained
    on up to the end of their chunk and on nothing else (Awadalla et al. 2023), its parts."""
    if CHUNK not in segment.text:
        yield replace(segment, text=segment.text.replace(MARK, image))
        return
    before, *chunks = segment.text.split(MARK)
    yield Segment("prompt", before, False)
    for chunk in chunks:
        text, _, rest = chunk.partition(CHUNK)
        yield Segment("prompt", image, False)
        yield Segment("assistant", text + template.end_of_chunk, True)
        yield Segment("prompt", rest, False)


def by_images(example: Example) -> Example:
    """An example whose side of the split is that of its images, if it has any: what is asked of
    them is often the same. Dropped if it is an interleaved text that shows none."""
    if not example.row.images and CHUNK in str(example.row.columns.get("text", "")):
        return replace(example, dropped="no image is like its sentence")
    names = [Path(file).name for file in example.row.images]  # wherever the files lie
    return replace(example, key="\n".join(names)) if names else example


def finished(row: dict[str, Any], source: Row, tokens: ImageTokens) -> dict[str, Any] | str:
    """A row with its images, and of stage 1 no label on them; or why it is left out.

    The length limit of stage 1 may fall into an image: the row then ends before it. Prompts of
    stages 2 and 3 are whole, and show all of theirs.
    """
    shown = {"images": list(source.images), "where": source.where}
    if "labels" not in row:
        begin = row.get("prompt_length", len(row.get("input_ids", ())))
        sides = [row[name] for name in SIDES if name in row]
        wanted = tokens.count * len(source.images)
        if "row" in row:  # what reward functions are told
            row = {**row, "row": {**row["row"], "images": shown["images"]}}
        if all(ids.count(tokens.id) == ids[:begin].count(tokens.id) == wanted for ids in sides):
            return row | shown
        return f"holds {tokens.token} without an image, or in a reply"
    ids, labels = row["input_ids"], row["labels"]
    spots = [i for i, token in enumerate(ids) if token == tokens.id]
    whole, rest = divmod(len(spots), tokens.count)
    if whole > len(source.images):
        return f"holds {tokens.token} without an image"
    end = spots[whole * tokens.count] if rest else len(ids)
    labels = [IGNORED if ids[i] == tokens.id else labels[i] for i in range(end)]
    if all(label == IGNORED for label in labels[1:]):
        return "no trained token within sft.max_length"
    shown["images"] = list(source.images[:whole])
    return {**row, "input_ids": ids[:end], "labels": labels, **shown}
