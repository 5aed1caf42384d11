"""Small pictures, and rows of stage 1 as text with what is trained, for tests of images."""

from itertools import groupby
from pathlib import Path
from typing import Any

from _data_helpers import config, write_jsonl
from PIL import Image

from cores.config.template import ImageTemplate, RoleTemplate, TemplateSection
from cores.data import StageData, sft_data
from cores.data.images import ImageTokens
from cores.data.sides import Inputs
from scripts.recipes.bases_images import tokenizer

WORDS = tokenizer("<image>", "<end>")
TOKENS = ImageTokens("<image>", WORDS.convert_tokens_to_ids("<image>"), 3)
DESK = TemplateSection(
    kind="roles",
    user=RoleTemplate("Guest: ", "\n"),
    assistant=RoleTemplate("Desk: ", ""),
)
BARE = TemplateSection(kind="roles", assistant=RoleTemplate("", "\n"))
COLOURS = {"towel": (250, 240, 230), "lamp": (255, 210, 60), "key": (120, 90, 40)}


def pictures(folder: Path, suffix: str = ".png") -> Path:
    """A picture of each of COLOURS; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 30), colour).save(folder / (name + suffix))
    return folder


def template(section: TemplateSection = DESK, **image: Any) -> TemplateSection:
    """With texts around images."""
    return TemplateSection(**vars(section) | {"image": ImageTemplate(**image)})


def data(
    folder: Path, rows: list[Any], section: TemplateSection = DESK, tokens: Any = TOKENS,
    source: dict[str, Any] | None = None, **more: Any,
) -> StageData:  # fmt: skip
    """Stage 1's data of these rows in a file of `folder`, whose pictures are in its `seen`."""
    path = write_jsonl(folder / "rows.jsonl", rows)
    source = {"image_folder": "seen"} | (source or {}) if tokens else source
    made = sft_data(config(path, section, source=source, **more), WORDS, Inputs(images=tokens))
    assert isinstance(made, StageData)
    return made


def pieces(row: dict[str, Any]) -> list[tuple[str, bool]]:
    """Neighbours of one kind joined; a run of image tokens is [IMG]."""
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    parts = []
    for trained, run in groupby(pairs, lambda pair: pair[1] != -100):
        text = WORDS.decode([token for token, _ in run], clean_up_tokenization_spaces=False)
        parts.append((text.replace("<image>" * TOKENS.count, "[IMG]"), trained))
    return parts


def said(*texts: str) -> list[dict[str, str]]:
    """Turns of a guest and the desk, one after another."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def one(folder: Path, row: Any, section: TemplateSection = DESK, **more: Any) -> dict[str, Any]:
    """The row that it becomes."""
    pictures(folder / "seen")
    rows = data(folder, [row], section, **more).train
    assert len(rows) == 1
    return rows[0]
