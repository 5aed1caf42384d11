"""Options of a source that the rows that are found leave without effect are refused."""

from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, config, write_jsonl
from _images import data, pictures, said, template
from _tokenizers import chat_like

from cores.data import preference_data, prompt_data, sft_data
from cores.errors import UserError

MADE: dict[str, Any] = {"sft": sft_data, "reward": preference_data, "ppo": prompt_data}
PAIR = {"chosen": said("Q", "A"), "rejected": said("Q", "B")}


@pytest.mark.parametrize(
    ("stage", "row", "source", "key"),
    [
        ("sft", {"messages": said("Q", "A")}, {"transcripts": True}, "sft.transcripts"),
        ("ppo", {"messages": said("Q")}, {"transcripts": True}, "prompts.transcripts"),
        ("ppo", {"prompt": "Q"}, {"prompt_tokens": 3}, "prompts.prompt_tokens"),
    ],
)
def test_rows_of_another_format(
    stage: str, row: dict, source: dict, key: str, tmp_path: Path
) -> None:
    """The file is named, its format and the column that is read."""
    made = config(write_jsonl(tmp_path / "a.jsonl", [row]), CHAT, source=source)
    with pytest.raises(UserError, match=f"data.{key}: has no effect on the rows of .*a.jsonl"):
        MADE[stage](made, chat_like())


@pytest.mark.parametrize(
    ("row", "section", "source", "key"),
    [
        ({"messages": said("Q", "A")}, {}, {}, "data.sft.image_folder"),
        ({"messages": said("Q", "A")}, {"after": "x"}, {"image_folder": None}, "template.image"),
        ({"image": "key.png", "messages": said("Q", "A")}, {"requests": ["What?"]}, {},
         "template.image.requests"),
        ({"image": "key.png", "messages": said("Q", "A")}, {}, {"similarity": 0.5},
         "data.sft.similarity"),
    ],
)  # fmt: skip
def test_images_that_no_row_has(
    row: dict, section: dict, source: dict, key: str, tmp_path: Path
) -> None:
    """Of a base that reads them; one that does not refuses them all."""
    pictures(tmp_path / "seen")
    with pytest.raises(UserError, match=f"^{key}: has no effect, as no row of .*rows.jsonl"):
        data(tmp_path, [row], template(**section), source=source)
    with pytest.raises(UserError, match="is for images, which this base does not read"):
        data(tmp_path, [row], template(**section), None, {"image_folder": "seen", **source})


def test_sources_share_a_template(tmp_path: Path) -> None:
    """What no row of one source needs another's may."""
    from cores.config.data import SourceSection, WeightedSource

    pictures(tmp_path / "seen")
    files = [
        write_jsonl(tmp_path / "texts.jsonl", [{"messages": said("Q", "A")}]),
        write_jsonl(tmp_path / "seen" / "rows.jsonl", [{"image": "key.png", "caption": "A key."}]),
    ]
    items = [WeightedSource(path=file) for file in files]
    source = vars(SourceSection(sources=items)) | {"path": None}
    found = data(tmp_path, [], template(requests=["What?"]), source=source | {"image_folder": None})
    assert len(found.train) == 2
