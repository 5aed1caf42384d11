"""Which texts a moderation model lets pass (docs/recipes.md, OpenChatKit).

    python scripts/moderate.py --config configs/recipes/openchatkit_moderation.yaml
        [--model.path FOLDER] [--refuse LABEL[,LABEL]] [--json OUT] FILE

FILE: a text a line (.txt), or rows with a column text or prompt. The model is what stage 1 wrote
under the configuration's output_dir, or a finished moderation model at --model.path. A line a text
says its label, the probability of that among the labels, and whether it passes; OUT gets the same
as JSON, a line each. --refuse: labels that do not pass, in place of "needs intervention".
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cores.config import parse_config
from cores.config.data import OneSource
from cores.errors import UserError, readable
from cores.runtime.cli import guarded

WIDTH = 60
"""Characters of a text that are shown."""


def taken(words: list[str], option: str) -> str | None:
    """The value of an option of this script, which is then no longer among `words`."""
    if option not in words:
        return None
    at = words.index(option)
    if at + 1 >= len(words):
        raise UserError(f"{option}: has no value; give one.")
    value = words[at + 1]
    del words[at : at + 2]
    return value


def texts_of(file: str) -> list[str]:
    """The texts of FILE; UserError that names the row for one that has none."""
    from cores.data.sources import sources
    from cores.data.values import words_of

    if file.endswith(".txt"):
        with readable(file):
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()]
    source, _ = sources(OneSource(path=file), "FILE")
    rows = list(source.open())
    return [words_of(row, "text" if "text" in row.columns else "prompt") for row in rows]


def main(argv: list[str]) -> None:
    """Judge the texts of the last argument."""
    words = list(argv)
    refuse, out = taken(words, "--refuse"), taken(words, "--json")
    if not words or words[0] in ("-h", "--help") or words[-1].startswith("--"):
        sys.exit(__doc__)
    file = words.pop()
    config = parse_config(words, "moderate.py", "Which texts a moderation model lets pass.")
    folder = Path(config.output_dir) / "sft"
    if any(word.partition("=")[0] == "--model.path" for word in words):
        folder = Path(config.model.path)
    elif not (folder / "stage.json").exists():
        raise UserError(
            f"{folder}: there is no finished stage 1 of this configuration. Run stage1_sft.py with "
            "it, or give a finished moderation model (--model.path FOLDER)."
        )

    from cores.runtime.launch import quiet
    from scripts.evaluation.moderation import REFUSED, load_gate

    quiet()
    texts = texts_of(file)
    if not texts:
        raise UserError(f"{file}: holds no texts; give a file with at least one.")
    wanted = REFUSED if refuse is None else [label.strip() for label in refuse.split(",")]
    verdicts = load_gate(config, folder, wanted).judge(texts)
    for text, verdict in zip(texts, verdicts, strict=True):
        passes = "passes " if verdict.allowed else "refused"
        label = verdict.label or "longer than the model reads"
        share = f"{verdict.probabilities[label]:.2f}" if verdict.label else "   -"
        print(f"{passes}  {share}  {label:<24}  {' '.join(text.split())[:WIDTH]}")
    print(f"{sum(v.allowed for v in verdicts)} of {len(verdicts)} texts pass")
    if out is not None:
        lines = [
            json.dumps({"text": t, **vars(v)}, ensure_ascii=False) + "\n"
            for t, v in zip(texts, verdicts, strict=True)
        ]
        try:
            Path(out).write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--json: {out} cannot be written ({error.strerror or error}); name another file."
            ) from error


if __name__ == "__main__":
    guarded(main)
