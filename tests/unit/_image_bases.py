"""Tiny bases that read images, made once."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from _images import COLOURS
from PIL import Image

from cores.config import Config, ModelSection
from cores.models import load_tokenizer
from cores.models.bases import load_base
from cores.models.images import ImageProcessor, image_processor
from cores.models.loading import load_config
from scripts.recipes import bases_images

KINDS = ("llava", "blip2", "idefics")


@cache
def folder(kind: str) -> Path:
    """Of a base."""
    out = Path(mkdtemp(prefix=f"{kind}-"))
    getattr(bases_images, kind)(out)
    return out


@cache
def reader(kind: str) -> ImageProcessor:
    """What it makes of images."""
    path = str(folder(kind))
    config, tokenizer = Config(model=ModelSection(path=path)), load_tokenizer(path)
    made = image_processor(config, load_config(path), tokenizer, 0)
    assert made is not None
    return made


def model(kind: str) -> Any:
    """The base as stage 1 loads it."""
    return load_base(folder(kind), reader(kind).tokenizer)


def files(out: Path) -> list[str]:
    """A picture of each colour."""
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 30), colour).save(out / f"{name}.png")
    return [str(out / f"{name}.png") for name in COLOURS]


def row(kind: str, text: str, images: list[str], where: str = "rows.jsonl:1") -> dict[str, Any]:
    """A row of stage 1 whose words are all trained; @ stands for an image."""
    made = reader(kind)
    ids = made.tokenizer(text.replace("@", made.token * made.count))["input_ids"]
    labels = [-100 if i in (made.id, 1) else i for i in ids]
    return {"input_ids": ids, "labels": labels, "images": images, "where": where}
