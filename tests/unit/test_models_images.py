"""Bases that read images: tokens of one, batches of rows with many and with none, saving."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _image_bases import KINDS, files, folder, model, reader, row
from transformers import AutoModelForImageTextToText, AutoProcessor

from cores.config import Config, LoraSection, ModelSection
from cores.errors import UserError
from cores.models import save_model
from cores.models.bases import check_base
from cores.models.images import image_ids, image_processor, later_processor, run_ids
from cores.models.loading import check_scalar, load_config
from cores.models.vocabulary import EXCLUDED_LOGIT
from cores.training.sft import collate

every = pytest.mark.parametrize("kind", KINDS)


@torch.no_grad()
def logits(made: Any, kind: str, rows: list[dict[str, Any]]) -> torch.Tensor:
    """(B, L, V) of the rows themselves."""
    batch = collate(rows, reader(kind).tokenizer.pad_token_id, images=reader(kind))
    del batch["labels"]
    return made.eval()(**batch).logits[: len(rows)]


def test_tokens_of_an_image() -> None:
    """A token a patch, a token a query, one token."""
    assert [reader(kind).count for kind in KINDS] == [4, 3, 1]
    llava = load_config(folder("llava"))
    llava.vision_feature_select_strategy = "full"  # the patches and the one of the class
    assert replace(reader("llava"), config=llava).count == 5
    ids = [run_ids(load_config(folder(kind))) for kind in KINDS]
    assert ids == [{355}, {355}, set()]


@every
def test_a_reply_depends_on_its_own_images(kind: str, tmp_path: Path) -> None:
    """In their order; not on those of rows beside it, nor on padding."""
    one, two, three = files(tmp_path)
    made = model(kind)
    if kind == "idefics":  # gates are shut at first
        for name, weight in made.named_parameters():
            if "alpha" in name:
                torch.nn.init.ones_(weight)
    rows = [row(kind, "@ and @ ?", [one, two]), row(kind, "what ?", []), row(kind, "@", [three])]
    together = logits(made, kind, rows)
    for i, own in enumerate(rows):
        alone = logits(made, kind, [own])
        length = len(own["input_ids"])
        torch.testing.assert_close(together[i, :length], alone[0, :length], atol=1e-5, rtol=1e-5)
    turned = logits(made, kind, [{**rows[0], "images": [two, one]}])
    assert (turned[0] - together[0, : turned.shape[1]]).abs().max() > 1e-5


def test_idefics_shows_the_last_image(tmp_path: Path) -> None:
    """To each token the last one up to it, to those before the first none; most rows have fewer
    images than one of them, and are filled up with black."""
    made, (one, two, _) = reader("idefics"), files(tmp_path)
    rows = [row("idefics", "a@b@", [one, two]), row("idefics", "@c", [two])]
    batch = collate(rows, 3, images=made)
    shown = batch["image_attention_mask"].tolist()
    # <s> a @ b @, and <s> @ c with two of padding
    assert shown[0] == [[0, 0], [0, 0], [1, 0], [1, 0], [0, 1]]
    assert shown[1][:3] == [[0, 0], [1, 0], [1, 0]]
    assert batch["pixel_values"].shape == (2, 2, 3, 32, 32)
    assert not batch["pixel_values"][1, 1].any()
    assert torch.equal(batch["pixel_values"][0, 1], batch["pixel_values"][1, 0])


@every
def test_a_batch_of_texts(kind: str, tmp_path: Path) -> None:
    """A black image stands in, with gradients of 0: its loss is that of the texts alone."""
    made, pad = model(kind), reader(kind).tokenizer.pad_token_id
    rows = [row(kind, "good day", []), row(kind, "a towel", [])]
    batch = collate(rows, pad, images=reader(kind))
    assert batch["input_ids"].shape[0] == 3
    assert (batch["labels"][2] == -100).all()
    loss = made(**batch).loss
    loss.backward()
    part = {"llava": "multi_modal_projector", "blip2": "language_projection"}
    names = part.get(kind, "perceiver_resampler")
    found = [p.grad for name, p in made.named_parameters() if names in name]
    assert found
    assert all(grad is not None and not grad.any() for grad in found)
    beside = logits(made, kind, [*rows, row(kind, "@", files(tmp_path)[:1])])
    torch.testing.assert_close(logits(made, kind, rows)[:, :5], beside[:2, :5])


@every
def test_what_is_saved(kind: str, tmp_path: Path) -> None:
    """Stock transformers load model and processor, and compute the same from text and images;
    no reply may hold the token of an image."""
    made, (one, *_), read = model(kind), files(tmp_path), reader(kind)
    save_model(made, read.tokenizer, tmp_path / "out")
    read.save(tmp_path / "out")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    rows = [row(kind, "see @ ?", [one])]
    ours, theirs = logits(made, kind, rows), logits(stock, kind, rows)
    barred = [read.tokenizer.pad_token_id, *image_ids(made.config, read.tokenizer)]
    assert read.id in barred
    assert (ours[..., barred] == EXCLUDED_LOGIT).all()
    assert set(barred) <= set(made.generation_config.suppress_tokens)
    theirs[..., barred] = EXCLUDED_LOGIT
    torch.testing.assert_close(ours, theirs)
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "out")
    black = read.blank()
    made_pixels = processor.image_processor([black], return_tensors="pt")
    pixels = made_pixels if isinstance(made_pixels, torch.Tensor) else made_pixels["pixel_values"]
    assert torch.equal(pixels, read.pixels([black]))


def test_idefics_has_one_vocabulary(tmp_path: Path) -> None:
    """Its additional ids become rows like the others, so that tokens can be added; what the model
    computes stays."""
    stock = AutoModelForImageTextToText.from_pretrained(folder("idefics")).eval()
    made, (one, *_) = model("idefics"), files(tmp_path)
    assert (stock.config.vocab_size, made.config.vocab_size) == (355, 357)
    assert not made.config.additional_vocab_size
    rows = [row("idefics", "see @ ?", [one])]
    theirs, ours = logits(stock, "idefics", rows), logits(made, "idefics", rows)
    free = [i for i in range(357) if i not in {3, 355, 356}]
    torch.testing.assert_close(ours[..., free], theirs[..., free])


@pytest.mark.parametrize("section", ["llava", "blip2", "idefics"])
def test_a_base_is_judged_before_it_is_loaded(section: str) -> None:
    """It can start stage 1; of LLaVA's class it can be a reward model too."""
    config = load_config(folder(section))
    check_base(folder(section), config, reader(section).tokenizer)
    if section == "llava":
        return check_scalar(config, "sft.path")
    with pytest.raises(UserError, match=r"^sft.path: .* reads images.* stage 1 alone"):
        check_scalar(config, "sft.path")


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("sft.packing", {"sft": {"packing": True}}),
        ("sft.lora.rank", {"sft": {"lora": LoraSection(rank=2)}}),
        ("model.quantization", {"model": {"quantization": "8bit"}}),
        ("model.attention", {"model": {"attention": "prefix"}}),
        ("model.attention", {"sft": {"prefix_tokens": 4}}),
        ("data.join", {"data": {"join": ""}}),
        ("data.too_long split", {"data": {"too_long": "split"}}),
    ],
)
def test_what_does_not_go_with_images(key: str, changes: dict[str, dict[str, Any]]) -> None:
    """Refused by its name."""
    config = Config(model=ModelSection(path=str(folder("llava"))))
    for name, values in changes.items():
        config = replace(config, **{name: replace(getattr(config, name), **values)})
    base, tokenizer = load_config(folder("llava")), reader("llava").tokenizer
    with pytest.raises(UserError, match=rf"reads images, .* not trained with {key}"):
        image_processor(config, base, tokenizer, 0)
    with pytest.raises(UserError, match=r"not trained with shards \(DeepSpeed, FSDP2\)"):
        image_processor(Config(), base, tokenizer, 2)


@pytest.mark.parametrize("stage", ["reward", "ppo"])
@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("several processes", {}),
        ("{stage}.lora.rank", {"lora": LoraSection(rank=2)}),
        ("reward.base", {"base": "elsewhere"}),
        ("reward.path", {"path": "elsewhere"}),
    ],
)
def test_what_stages_2_and_3_do_not_have(stage: str, key: str, changes: dict[str, Any]) -> None:
    """Refused by its name, and nothing else is: one process with none of it has its processor."""
    config, section = Config(), stage if "lora" in changes else "reward"
    config = replace(config, **{section: replace(getattr(config, section), **changes)})
    base, tokenizer = load_config(folder("llava")), reader("llava").tokenizer
    given = (base, tokenizer, folder("llava"), stage)
    said = rf"LlavaForCond.* reads images, .* go without {key.format(stage=stage)}; set back"
    with pytest.raises(UserError, match=said):
        later_processor(config, *given, processes=1 if changes else 2)
    assert later_processor(Config(), *given, processes=1) is not None


def test_processors_and_tokenizers_of_other_models() -> None:
    """Images of another size would fail in the middle of a step, other tokens at the first."""
    config = load_config(folder("blip2"))
    config.vision_config.image_size = 64
    with pytest.raises(UserError, match=r"images of \[32, 32\] pixels, .* image_size 64"):
        assert replace(reader("blip2"), config=config).count
    config = load_config(folder("llava"))
    config.image_token_id = 12
    with pytest.raises(UserError, match="has no token that stands for an image"):
        assert replace(reader("llava"), config=config, tokenizer=reader("llava").tokenizer).id
