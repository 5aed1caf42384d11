"""Options of images that would have no effect."""

from cores.config.data import OneSource
from cores.config.schema import Config
from cores.config.template import ImageTemplate
from cores.data.sources import Row
from cores.errors import UserError

INTERLEAVED = ("text_list", "image_info")
"""Columns of MMC4 (Zhu et al. 2023)."""


def check_options(
    config: Config, source: OneSource, path: str, rows: list[tuple[Row, Row]], key: str
) -> None:
    """UserError for options of images that none of the rows, as they were and as they are read,
    gives anything to do."""
    image, usual = config.template.image, ImageTemplate()
    alone = not key.endswith("]")  # other sources may have rows for the template
    shown = any(read.images for _, read in rows)
    mixed = any(set(INTERLEAVED) <= row.columns.keys() for row, _ in rows)
    asked = any(captioned(source, row) for row, _ in rows)
    for name, given, used, what in (
        (f"{key}.image_folder", source.image_folder is not None, shown, "has an image"),
        *(
            (
                f"{key}.{name}",
                getattr(source, name) != getattr(OneSource(), name),
                mixed,
                "is interleaved",
            )
            for name in ("similarity", "most_images")
        ),
        ("template.image", alone and image != usual, shown, "has an image"),
        ("template.image.requests", alone and bool(image.requests), asked, "is of format caption"),
        ("template.image.clean", alone and image.clean, asked, "is of format caption"),
    ):
        if given and not used:
            raise UserError(
                f"{name}: has no effect, as no row of {path!r} {what}; remove it, or give rows "
                "that need it (docs/data.md)."
            )


def captioned(source: OneSource, row: Row) -> bool:
    """Whether a row is an image and what is said of it."""
    return source.format == "caption" or (source.format is None and "caption" in row.columns)
