"""What the tests of recipes share: the cases, their files, and the words of a command line."""

import json
from pathlib import Path

from _helpers import ROOT
from _recipe_images import IMAGES, PICTURES
from _recipe_rows import TEXTS, Case

from cores.config import parse_config
from scripts.recipes.table import SYSTEMS

CASES = TEXTS | IMAGES
RECIPES = sorted(path.stem for path in (ROOT / "configs" / "recipes").glob("*.yaml"))
BASE = {system.recipe: system.base for system in SYSTEMS if system.recipe}
WITH_IMAGES = {BASE[recipe] for recipe in IMAGES}


def written(case: Case, folder: Path) -> Path:
    """The case's file in `folder`, and its images."""
    folder.mkdir()
    file = folder / case.file
    if file.suffix == ".json":
        text = json.dumps(case.rows, ensure_ascii=False)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in case.rows)
    file.write_text(text, encoding="utf-8")
    if case.images:
        from PIL import Image

        for colour in PICTURES:
            to = folder / case.images.format(colour)
            to.parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 30), colour).save(to)
    return file


def words(recipe: str, base: Path, file: Path, out: Path) -> list[str]:
    """What a user gives: base and file alone, and no quantised base on a CPU."""
    given = ["--config", str(ROOT / "configs" / "recipes" / f"{recipe}.yaml")]
    given += ["--model.path", str(base), "--data.sft.path", str(file), "--output_dir", str(out)]
    quantised = parse_config(given, "", "").model.quantization != "none"
    return [*given, *(["--model.quantization", "none"] if quantised else [])]
