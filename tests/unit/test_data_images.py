"""Images of rows: where they are found, where they stand, and what is trained beside them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import config, write_jsonl
from _images import BARE, DESK, TOKENS, WORDS, data, one, pictures, pieces, said, template
from PIL import Image

from cores.config.data import DataSection
from cores.config.template import ImageTemplate, RoleTemplate, TemplateSection
from cores.data import preference_data, prompt_data, show
from cores.data.images import MARK
from cores.data.sides import Inputs
from cores.errors import UserError

ASKED = said("What is <image> here?", "A lamp.")


def test_an_image_stands_where_the_turn_says(tmp_path: Path) -> None:
    """As a run of tokens, none of them trained; the row knows its file and where it was."""
    row = one(tmp_path, {"image": "lamp.png", "messages": ASKED})
    assert pieces(row) == [
        ("<s>Guest: What is [IMG] here?\nDesk: ", False),
        ("A lamp.</s>", True),
    ]
    assert row["images"] == [str(tmp_path / "seen" / "lamp.png")]
    assert row["where"].endswith("rows.jsonl:1")


def test_front_and_texts_around(tmp_path: Path) -> None:
    """The turn's own text is then without the white space that was around the image."""
    front = template(place="front", after="\n")
    turns = said("What is this?\n<image>", "A lamp.", "And now?", "A lamp.")
    shown = pieces(one(tmp_path, {"image": "lamp.png", "messages": turns}, front))
    assert shown[0] == ("<s>Guest: [IMG]\nWhat is this?\nDesk: ", False)
    assert shown[2] == ("Guest: And now?\nDesk: ", False)
    around = template(before="(", after=")")
    assert pieces(one(tmp_path, {"image": "lamp.png", "messages": turns}, around))[0] == (
        "<s>Guest: What is this?\n([IMG])\nDesk: ",
        False,
    )


def test_a_frame_whose_prefix_alone_is_trained(tmp_path: Path) -> None:
    """LLaVA's version 0: of a question its first word, of the last answer the next mark too."""
    answer = RoleTemplate("### Desk: ", stop="\n", train="all")
    section = TemplateSection(
        kind="roles",
        user=RoleTemplate("### Guest", opening=": ", suffix="\n", train="prefix"),
        earlier=answer,
        assistant=replace(answer, stop="\n### "),
        image=ImageTemplate(before="(", after=")"),
    )
    turns = said("<image>\nWhat is this?", "A lamp.", "Is it on?", "No.")
    assert pieces(one(tmp_path, {"image": "lamp.png", "messages": turns}, section)) == [
        ("<s>", False),
        ("### Guest", True),
        (": ([IMG])\nWhat is this?\n", False),
        ("### Desk: A lamp.\n### Guest", True),
        (": Is it on?\n", False),
        ("### Desk: No.\n### ", True),
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio", "audio": "a.wav"},
        {"type": "image_url", "image_url": {"url": "lamp.png"}},
        {"type": "image", "image": "other.png"},
    ],
)
def test_parts_that_would_be_lost(part: dict[str, Any], tmp_path: Path) -> None:
    """Sound, and images of their own, beside those of the row."""
    parts = [part, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": parts}, *said("", "A lamp.")[1:]]
    with pytest.raises(UserError, match=r"rows.jsonl:1: a part of a turn is dict .*in `images`"):
        one(tmp_path, {"image": "lamp.png", "messages": turns})


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": [{"role": "system", "content": "S"}, *said("Both?", "Yes.")]},
        {"conversations": [{"from": "human", "value": "Both?"}, {"from": "gpt", "value": "Yes."}]},
        {"prompt": "Both?", "completion": "Yes."},
        {"prompt": said("Both?"), "completion": said("", "Yes.")[1:]},
        {"instruction": "Both?", "output": "Yes."},
    ],
)
def test_images_that_no_turn_names_come_first(tmp_path: Path, columns: dict[str, Any]) -> None:
    """In every form of row, before the first words of the user."""
    row = one(tmp_path, {"images": ["towel.png", "key.png"], **columns})
    assert "Guest: [IMG][IMG]Both?\nDesk: " in pieces(row)[0][0]
    assert [Path(file).stem for file in row["images"]] == ["towel", "key"]


def test_parts_of_a_turn(tmp_path: Path) -> None:
    """Messages of parts, an image among them (TRL's form)."""
    parts = [
        {"type": "text", "text": "Is "},
        {"type": "image"},
        {"type": "text", "text": " a key?"},
    ]
    turns = [{"role": "user", "content": parts}, *said("", "Yes.")[1:]]
    row = one(tmp_path, {"images": ["key.png"], "messages": turns})
    assert pieces(row)[0] == ("<s>Guest: Is [IMG] a key?\nDesk: ", False)


@pytest.mark.parametrize("name", ["lamp", 7])
def test_a_name_without_suffix(tmp_path: Path, name: Any) -> None:
    """Ids of images are file names without one, numbers too."""
    Image.new("RGB", (8, 8)).save(pictures(tmp_path / "seen") / "7.jpg")
    row = one(tmp_path, {"image": name, "messages": ASKED})
    assert row["images"] == [str(tmp_path / "seen" / {"lamp": "lamp.png", 7: "7.jpg"}[name])]


def broken(folder: Path) -> None:
    (folder / "torn.png").write_bytes((folder / "lamp.png").read_bytes()[:60])
    (folder / "page.png").write_text("<html>not found</html>")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("nowhere.png", "there is no image .*nowhere.png .*image_folder"),
        ("torn.png", "the image .*torn.png cannot be read: "),
        ("page.png", "the image .*page.png cannot be read: cannot identify"),
        ("https://host/a.png", "the address 'https://host/a.png'; nothing is fetched"),
        ("data:image/png;base64,AAAA", "the address 'data:"),
        ({"bytes": None}, "must name image files, but holds dict"),
        (["lamp.png", "key.png"], "2 images, and <image> stands 1 times"),
        (True, "must name image files, but holds bool"),
    ],
)
def test_images_that_cannot_be_shown(tmp_path: Path, value: Any, says: str) -> None:
    """The row is named by file and line."""
    broken(pictures(tmp_path / "seen"))
    rows = [{"image": "lamp.png", "messages": ASKED}, {"image": value, "messages": ASKED}]
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{says}"):
        data(tmp_path, rows)


def test_an_image_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit is an error from twice as many on, and a warning before."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(UserError, match=r"rows.jsonl:1: .*600 pixels. exceeds limit of 599"):
        one(tmp_path, {"image": "lamp.png", "messages": ASKED})


def test_no_label_on_an_image(tmp_path: Path) -> None:
    """Not even where every token is trained."""
    row = one(tmp_path, {"image": "lamp.png", "messages": ASKED}, sft={"loss_on": "all"})
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    untrained = [token for token, label in pairs if label == -100]
    assert untrained == [TOKENS.id] * TOKENS.count


def test_a_limit_within_an_image(tmp_path: Path) -> None:
    """The row ends before it, and has one image less; nothing trained is left of some."""
    turns = said("<image>", "Yes.", "<image>", "No.")
    row = {"images": ["lamp.png", "key.png"], "messages": turns}
    whole = one(tmp_path, row)
    second = whole["input_ids"].index(TOKENS.id, whole["input_ids"].index(TOKENS.id) + 3)
    cut = one(tmp_path, row, sft={"max_length": second + 2})
    assert cut["input_ids"] == whole["input_ids"][:second]
    assert cut["labels"] == whole["labels"][:second]
    assert cut["images"] == whole["images"][:1]
    kept = one(tmp_path, row, sft={"max_length": second + 3})
    assert kept["images"] == whole["images"]
    with pytest.raises(UserError, match=r"1 no trained token within sft.max_length"):
        one(tmp_path, row, sft={"max_length": 10})


def test_texts_beside_rows_of_images(tmp_path: Path) -> None:
    """They have no image; one who types the token of images has typed a control token."""
    rows = [{"prompt": "A?", "completion": "B"}, {"prompt": "<image>?", "completion": "B"}]
    made = data(tmp_path, rows, source={"image_folder": None})
    assert [row["images"] for row in made.train] == [[]]
    assert "holds the control token <image>" in "".join(made.report.lines())
    with pytest.raises(UserError, match="holds <image> without an image"):
        data(
            tmp_path,
            [{"prompt": f"{MARK}?", "completion": "B"}],
            source={"image_folder": None},
        )


def test_rows_of_one_image_are_on_one_side(tmp_path: Path) -> None:
    """Whatever is asked of it, wherever the files lie; and images are spread over both sides."""
    pictures(tmp_path / "seen")
    names = [f"{i}.png" for i in range(20)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / "seen" / name)
    rows = [
        {"image": name, "prompt": f"{asked}?", "completion": "B"}
        for name in names
        for asked in ("Who", "What")
    ]
    made = data(tmp_path, rows, test_fraction=0.4)
    sides = [{row["images"][0] for row in side} for side in (made.train, made.test)]
    assert len(made.train) + len(made.test) == 40
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("section", "source", "key"),
    [
        (DESK, {"image_folder": "seen"}, "data.sft.image_folder"),
        (DESK, {"similarity": 0.3}, "data.sft.similarity"),
        (DESK, {"format": "caption"}, "data.sft.format caption"),
        (template(before="("), {}, "template.image"),
    ],
)
def test_a_base_that_reads_none(
    tmp_path: Path, section: TemplateSection, source: dict[str, Any], key: str
) -> None:
    """Options of images would do nothing, and images would be lost."""
    row = {"prompt": "A?", "completion": "B"}
    with pytest.raises(UserError, match=rf"^{key}: is for images, which this base does not read"):
        data(tmp_path, [row], section, None, source)
    with pytest.raises(UserError, match=r"column 'image' .* is not read"):
        data(tmp_path, [{**row, "image": "lamp.png"}], DESK, None)


def test_a_template_that_loses_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat template that shows no content would train an image that is not in the row."""
    lossy = "{% for m in messages %}{{ m['role'] }}:</s>{% endfor %}"
    monkeypatch.setattr(WORDS, "chat_template", lossy, raising=False)
    with pytest.raises(UserError, match=r"rows.jsonl:1: the template shows 0 of the 1 images"):
        one(tmp_path, {"image": "lamp.png", "messages": ASKED}, TemplateSection(kind="chat"))


def test_ignored_images(tmp_path: Path) -> None:
    """Knowingly: the row is then a text."""
    row = {"image": "nowhere.png", "prompt": "A?", "completion": "B"}
    assert one(tmp_path, row, source={"ignore": ["image"], "image_folder": None})["images"] == []


def test_rows_for_programs(tmp_path: Path) -> None:
    """A run of image tokens is one <IMG>, the ids are all there, and the files are named."""
    pictures(tmp_path / "seen")
    rows = [{"image": "lamp.png", "messages": ASKED}, {"messages": said("A?", "B")}]
    made, out = data(tmp_path, rows), tmp_path / "out.jsonl"
    show(made, WORDS, DataSection(inspect_json=str(out)), TOKENS)
    with_image, without = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert with_image["segments"] == [
        ["<s>Guest: What is <IMG> here?\nDesk: ", False],
        ["A lamp.</s>", True],
    ]
    assert with_image["ids"].count(TOKENS.id) == TOKENS.count
    assert with_image["images"] == [str(tmp_path / "seen" / "lamp.png")]
    assert not without.get("images")


def test_other_names_of_speakers(tmp_path: Path) -> None:
    """Whoever a file calls the user is shown the image."""
    turns = [{"from": "user", "value": "A lamp?"}, {"from": "chatgpt", "value": "Yes."}]
    row = {"image": "lamp.png", "conversations": turns}
    assert pieces(one(tmp_path, row))[0] == ("<s>Guest: [IMG]A lamp?\nDesk: ", False)
    plain = one(tmp_path, row, BARE, source={"format": "caption"})
    assert pieces(plain) == [("<s>[IMG]", False), ("Yes.\n</s>", True)]


def test_pairs_and_prompts_show_their_images(tmp_path: Path) -> None:
    """Both sides of a pair behind the same prompt, which has the whole image; a prompt's row tells
    reward functions of it; the rows for programs write an image once."""
    pictures(tmp_path / "seen")
    row = {"image": "lamp.png", "prompt": "What is it?", "chosen": "A lamp.", "rejected": "A cup."}
    takes, path = Inputs(images=TOKENS), write_jsonl(tmp_path / "pairs.jsonl", [row])
    made = config(path, DESK, source={"image_folder": "seen"})
    stage_2 = preference_data(made, WORDS, takes)
    (pair,) = stage_2.train
    begin = pair["prompt_length"]
    assert pair["chosen_ids"][:begin] == pair["rejected_ids"][:begin]
    assert pair["chosen_ids"][:begin].count(TOKENS.id) == TOKENS.count
    assert pair["images"] == [str(tmp_path / "seen" / "lamp.png")]
    (prompt,) = prompt_data(made, WORDS, takes).train
    assert prompt["input_ids"] == pair["chosen_ids"][:begin]
    assert prompt["images"] == prompt["row"]["images"] == pair["images"]
    section = DataSection(inspect_json=str(tmp_path / "out.jsonl"))
    show(stage_2, WORDS, section, TOKENS)
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text("utf-8").splitlines())
    assert line["chosen"]["segments"][0][0] == "<s>Guest: <IMG>What is it?\nDesk: "
