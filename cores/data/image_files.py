"""Files of images: their names in rows, whether they can be read, and reading them; options of
images that would have no effect.

Nothing is fetched: a name is that of a file.
"""

import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from cores.config.data import OneSource
from cores.config.schema import Config
from cores.config.template import ImageTemplate
from cores.data.sources import Row
from cores.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".JPG", ".JPEG", ".PNG")
"""Tried where a row names an image without."""


def image_names(row: Row, column: str) -> list[str]:
    """The files that a column names."""
    value = row.columns.get(column)
    names = [] if value in (None, "") else value if isinstance(value, list) else [value]
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            raise UserError(
                f"{row.where}: column {column!r} must name image files, but holds "
                f"{type(name).__name__} {str(name)[:60]!r}; save the images as files and give "
                "their names."
            )
        if re.match(r"data:|[A-Za-z][\w+.-]*://", str(name)):
            raise UserError(
                f"{row.where}: column {column!r} holds the address {str(name)[:100]!r}; nothing is "
                "fetched: download the images and give the names of their files."
            )
    return [str(name) for name in names]


def found_image(folder: Path, name: str, where: str) -> str:
    """The file of an image, checked."""
    path = folder / name
    tried = [path, *(path.with_name(path.name + suffix) for suffix in SUFFIXES)]
    file = next((p for p in tried if p.is_file()), None)
    if file is None:
        raise UserError(
            f"{where}: there is no image {path} (looked in {folder.resolve()}); correct the row, "
            "or name the folder of the images in the source's image_folder."
        )
    if problem := _problem(str(file)):
        raise UserError(f"{where}: the image {file} cannot be read: {problem}.")
    return str(file)


@lru_cache(maxsize=100_000)
def _problem(path: str) -> str | None:
    """What is wrong with an image, as far as its header and checksums tell; None if nothing is."""
    try:
        with _opened(path) as image:
            image.verify()
    except Exception as error:  # by format anything from OSError to SyntaxError
        return _reason(error)
    return None


def read_image(path: str, where: str) -> Any:
    """The image of a file, RGB. UserError that names the row `where` if it is broken."""
    try:
        with _opened(path) as image:
            return image.convert("RGB")
    except Exception as error:  # as above
        raise UserError(f"{where}: the image {path} cannot be read: {_reason(error)}.") from None


def _opened(path: str) -> Any:
    """A few bytes may unpack into all memory: Pillow's limit of pixels holds, and no half more."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


INTERLEAVED = ("text_list", "image_info")
"""Columns of MMC4 (Zhu et al. 2023)."""


def check_options(
    config: Config, source: OneSource, path: str, rows: list[tuple[Row, Row]] | None, key: str
) -> None:
    """UserError for options of images that none of the rows, as they were and as they are read,
    gives anything to do; `rows` is None for a base that reads no images."""
    image, one, reads = config.template.image, OneSource(), rows is not None
    alone = not key.endswith("]") or not reads  # other sources may have rows for the template
    shown = any(read.images for _, read in rows or ())
    mixed = any(set(INTERLEAVED) <= row.columns.keys() for row, _ in rows or ())
    asked = any(captioned(source, row) for row, _ in rows or ())
    named = "names one in `image` or `images`"
    alike, most = source.similarity != one.similarity, source.most_images != one.most_images
    for name, given, used, what in (
        (f"{key}.format caption", source.format == "caption", reads, "is read"),
        (f"{key}.image_folder", source.image_folder is not None, shown, named),
        (f"{key}.similarity", alike, mixed, "is interleaved"),
        (f"{key}.most_images", most, mixed, "is interleaved"),
        ("template.image", alone and image != ImageTemplate(), shown, "has an image"),
        ("template.image.requests", alone and image.requests, asked, "is of format caption"),
        ("template.image.clean", alone and image.clean, asked, "is of format caption"),
    ):
        if given and not used:
            problem = (
                f"has no effect, as no row of {path!r} {what}; remove it, or give rows that need "
                "it (docs/data.md)."
            )
            if not reads:
                problem = (
                    "is for images, which this base does not read; remove it, or set model.path "
                    "to one that does (docs/models.md)."
                )
            raise UserError(f"{name}: {problem}")


def captioned(source: OneSource, row: Row) -> bool:
    """Whether a row is an image and what is said of it."""
    return source.format == "caption" or (source.format is None and "caption" in row.columns)
