"""Push a finished stage to the Hugging Face hub.

    python scripts/push.py runs/demo/ppo me/polite-desk --license apache-2.0 [--public]

Weights, configurations, tokenizer, stage.json and the model card; never samples, logs, metrics or
checkpoints. What they call by its place on this machine (/home/me/data/rows.jsonl, ../base) is
pushed by its last name alone; the files here stay as they are. The repository is made if it is not
there, private unless --public. The token is that of `hf auth login`, or HF_TOKEN. `--license` names
that of the model, which those of its base and its data decide; without it the one that the card got
from its base.
"""

import argparse
import hashlib
import json
import re
import shlex
import sys
from pathlib import Path, PurePath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.errors import UserError
from cores.files import read_json
from cores.run.card import card, license_in
from cores.runtime.cli import guarded
from cores.runtime.fingerprint import model_files

TOLD = ["README.md", "stage.json"]
"""What is pushed beside the files of the model."""
PLACE = re.compile(r"(?:~|\.{1,2})?/")
"""Begins what is no hub id and nothing below the folder of the run."""
NAMES = r"(?:[^\"'{},:/]+/)"
WITHIN = re.compile(rf"(?<![\w.:/-])(?:(?:~|\.{{1,2}})/{NAMES}*|/{NAMES}+)([^\"'{{}},/]+)/?")
"""A place within a word of a command; one name alone behind a `/` may be a text."""
NAMES_A_BASE = ("adapter_config.json", "config.json")


def main(argv: list[str]) -> None:
    """Push as the arguments `argv` say."""
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser("push.py", description=about, epilog=more)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="a stage's folder: <output_dir>/ppo")
    parser.add_argument("repository", help="owner/name on the hub")
    parser.add_argument("--license", help="of the model, by the hub's name: apache-2.0, mit, ...")
    parser.add_argument("--public", action="store_true", help="for everybody to see")
    options = parser.parse_args(argv)
    record = read_json(options.folder / "stage.json", "Give the folder of a finished stage.")
    page = options.folder / "README.md"  # stages of earlier versions have none
    told = page.read_text(encoding="utf-8") if page.is_file() else card(record)
    text = licensed(told, options.license)

    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError, HTTPError

    token = get_token()
    if token is None:
        raise UserError(
            "no token for the hub: run `hf auth login`, or set HF_TOKEN to one that may write "
            "(https://huggingface.co/settings/tokens)."
        )
    files = public(options.folder, record, text)
    operations = [CommitOperationAdd(name, told) for name, told in files.items()]
    try:
        api = HfApi(token=token)
        private, name = not options.public, options.repository
        api.create_repo(name, private=private, exist_ok=True)
        page.write_text(text, encoding="utf-8")
        message = f"tristage: {options.folder.name}"
        pushed = api.create_commit(name, operations, commit_message=message)
    except (HTTPError, HFValidationError, OSError, ValueError) as error:  # a name that is a URI
        first = " ".join(str(error).split())[:300]
        raise UserError(
            f"{options.repository}: not pushed, or not all of it ({first}). Check the name, that "
            "the token may write there, and the network, and give the same command again."
        ) from None
    print(f"pushed {len(files)} files to {pushed.commit_url}")


def public(folder: Path, record: dict[str, Any], text: str) -> dict[str, Path | bytes]:
    """What is pushed of a stage, by name: its files, and those that name places as bytes."""
    files: dict[str, Path | bytes] = {n: folder / n for n in model_files(folder, hashed=False)}
    renamed: dict[str, str] = {}
    record = placeless(record, renamed)
    for name in [name for name in files if PurePath(name).name in NAMES_A_BASE]:
        told = read_json(folder / name, "The stage has to be run again.")
        if (new := placeless(told, {})) != told:
            files[name] = data = (json.dumps(new, indent=2) + "\n").encode()
            record.get("files", {})[name] = hashlib.sha256(data).hexdigest()
    for old, new in renamed.items():
        text = text.replace(f"`{old}`", f"`{new}`")
    files["README.md"] = text.encode()
    files["stage.json"] = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
    return files


def placeless(told: Any, renamed: dict[str, str], key: str = "") -> Any:
    """`told` with the last names of this machine's places alone; `renamed` gets them. Templates are
    texts and stay."""
    if isinstance(told, dict):
        return {
            placeless(k, renamed): v if k == "template" else placeless(v, renamed, k)
            for k, v in told.items()
        }
    if isinstance(told, list):
        return [placeless(one, renamed) for one in told]
    if not isinstance(told, str):
        return told
    if key in ("command", "resume"):
        return shlex.join(WITHIN.sub(r"\1", word) for word in shlex.split(told))
    if PLACE.match(told):
        renamed[told] = PurePath(told).name or "."
        return renamed[told]
    return told


def licensed(card: str, wanted: str | None) -> str:
    """`card` with the licence `wanted`; UserError where there is none to name."""
    if wanted is None:
        if license_in(card) is None:
            raise UserError(
                "--license: the model's licence is not known. Name it as the hub does (apache-2.0, "
                "mit, llama3, other); those of its base and its data decide which."
            )
        return card
    bare = re.sub(r"(?m)^license:.*\n", "", card, count=1)
    return bare.replace("---\n", f'---\nlicense: "{wanted}"\n', 1)


if __name__ == "__main__":
    guarded(main)
