"""Reward model and critic: the token they read, whatever the padding and the loader."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _documented import lines
from _models import (
    BUILT,
    FAMILIES,
    KINDS,
    PAD,
    PROMPTS,
    classifier,
    policy_of,
    reward_folder,
    scalar_of,
    sft_folder,
    stock_scalar,
    toy_tokenizer,
)
from torch import Tensor
from transformers import AutoModel

from cores.data import left_pad, right_pad
from cores.models import ScalarModel, add_lora, load_scalar, save_model
from cores.models.body import position_ids
from cores.models.heads import LAYERS, expected_rating
from cores.models.rows import last_attended
from cores.training.reward import collate

LENGTHS = [[5, 9, 13, 20, 1], [7, 8], [33, 34, 5, 2, 9, 11, 44, 1], [20]]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def ours(kind: str) -> ScalarModel:
    return ScalarModel(scalar_of(kind)).eval()


@pytest.mark.parametrize("kind", [*FAMILIES, *BUILT])
@torch.no_grad()
def test_five_readers_read_the_same_token(kind: str) -> None:
    """Invariant 25: the stock classifier right-padded, left-padded with position ids and one row at
    a time, TRL's training batch, and ours: one number a row, to 1e-5."""
    model = ours(kind)
    stock = stock_scalar(reward_folder(kind))
    assert stock.config.reward_mean == 0.75
    right, right_mask = right_pad(LENGTHS, PAD)
    left, left_mask = left_pad(LENGTHS, PAD)
    scores = model.scores(right, right_mask) + 0.75
    torch.testing.assert_close(model.scores(left, left_mask) + 0.75, scores, **CLOSE)

    def logits(ids: Tensor, mask: Tensor, **more: Tensor) -> Tensor:
        return stock(input_ids=ids, attention_mask=mask.long(), **more).logits.squeeze(1)

    torch.testing.assert_close(logits(right, right_mask), scores, **CLOSE)
    positions = position_ids(left_mask)
    torch.testing.assert_close(logits(left, left_mask, position_ids=positions), scores, **CLOSE)
    alone = [stock(input_ids=torch.tensor([row])).logits.item() for row in LENGTHS]
    torch.testing.assert_close(torch.tensor(alone), scores, **CLOSE)
    pairs = [
        {"chosen_ids": LENGTHS[0], "rejected_ids": LENGTHS[1], "margin": 0.0},
        {"chosen_ids": LENGTHS[2], "rejected_ids": LENGTHS[3], "margin": 0.0},
    ]
    made = collate(pairs, PAD)
    trained = logits(made["input_ids"], made["attention_mask"])
    torch.testing.assert_close(trained, scores[[0, 2, 1, 3]], **CLOSE)


@pytest.mark.parametrize("kind", [*FAMILIES, *BUILT])
@torch.no_grad()
def test_scores_survive_saving(kind: str, tmp_path: Path) -> None:
    """Invariants 25, 30: save and load keep the number, reward_mean included."""
    model = ours(kind)
    ids, mask = right_pad(LENGTHS, PAD)
    save_model(model.model, toy_tokenizer(), tmp_path)
    again = ScalarModel(load_scalar(tmp_path)).eval()
    assert again.mean == 0.75
    assert torch.equal(again.scores(ids, mask), model.scores(ids, mask))


@pytest.mark.parametrize("kind", [*FAMILIES, *BUILT])
@torch.no_grad()
def test_values_are_a_forward_pass_a_prefix(kind: str) -> None:
    """Invariants 4, 15: the value at a token is the stock logit of the row cut after it, less the
    mean, however the row is padded."""
    model = ours(kind)
    stock = stock_scalar(reward_folder(kind))
    for pad in (left_pad, right_pad):
        ids, mask = pad(LENGTHS, PAD)
        values = model(ids, mask)
        for i, row in enumerate(LENGTHS):
            expected = [
                stock(input_ids=torch.tensor([row[: t + 1]])).logits.item() - 0.75
                for t in range(len(row))
            ]
            torch.testing.assert_close(values[i][mask[i]], torch.tensor(expected), **CLOSE)


@pytest.mark.parametrize("kind", [*FAMILIES, *BUILT])
@torch.no_grad()
def test_company_and_padding_change_no_score(kind: str) -> None:
    """Invariants 4, 8: another batch composition and other ids in the padding, same scores."""
    model = ours(kind)
    ids, mask = right_pad(LENGTHS, PAD)
    scores = model.scores(ids, mask)
    torch.testing.assert_close(model.scores(ids[[2, 0]], mask[[2, 0]]), scores[[2, 0]], **CLOSE)
    other = torch.where(mask, ids, 17)
    torch.testing.assert_close(model.scores(other, mask), scores, **CLOSE)
    middle = torch.cat([left_pad(LENGTHS, PAD)[0], torch.full((4, 3), PAD)], 1)
    middle_mask = torch.cat([left_pad(LENGTHS, PAD)[1], torch.zeros(4, 3).bool()], 1)
    torch.testing.assert_close(model.scores(middle, middle_mask), scores, **CLOSE)


def test_last_attended_by_hand() -> None:
    """Invariant 25: the last True of the mask, not the last id that is not pad."""
    values = torch.arange(12.0).view(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0]]).bool()
    assert last_attended(values, mask).tolist() == [1.0, 7.0, 10.0]


@pytest.mark.parametrize("kind", [*KINDS, *BUILT])
@torch.no_grad()
def test_adapters_and_their_head_are_read(kind: str) -> None:
    """Invariant 25: with adapters and a head trained beside them, ours = the stock forward."""
    from _models import LORA
    from peft import TaskType

    wrapped = add_lora(classifier(kind), LORA, TaskType.SEQ_CLS, "reward.lora")
    for name, p in wrapped.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            p.add_(torch.randn(p.shape) * 0.05)
    ids, mask = right_pad(LENGTHS, PAD)
    model = ScalarModel(wrapped).eval()
    scores = model.scores(ids, mask)
    stock = wrapped(input_ids=ids, attention_mask=mask.long()).logits.squeeze(1)
    torch.testing.assert_close(scores, stock, **CLOSE)


@pytest.mark.parametrize("kind", [*FAMILIES, *BUILT])
@torch.no_grad()
def test_a_policy_row_is_not_its_reward_row(kind: str) -> None:
    """Invariant 25: scores depend on the last token (the test above would pass on constants)."""
    model = ours(kind)
    first, _ = right_pad([[*PROMPTS[0], 5]], PAD)
    second, mask = right_pad([[*PROMPTS[0], 6]], PAD)
    assert (model.scores(first, mask) - model.scores(second, mask)).abs().item() > 1e-3
    assert policy_of(kind).config.vocab_size == model.model.config.vocab_size


@pytest.mark.parametrize("kind", [*KINDS, *BUILT])
@torch.no_grad()
def test_a_score_is_the_head_on_the_policy_s_hidden_state(kind: str) -> None:
    """Invariant 25: from a stage-1 folder all but the head is the policy's, by name; a score is the
    head's weights times the policy's last hidden state of the row alone."""
    model = load_scalar(sft_folder(kind), num_labels=1)
    assert type(model).__name__.endswith("ForSequenceClassification")
    policy = policy_of(kind)
    theirs, ours = policy.state_dict(), model.state_dict()
    assert {n for n in ours if n not in theirs} == {"score.weight"}
    assert all(torch.equal(ours[n], theirs[n]) for n in ours if n in theirs)
    body = AutoModel.from_pretrained(sft_folder(kind)).eval()
    ends = [body(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in LENGTHS]
    weight = model.score.weight.normal_()
    expected = torch.stack(ends) @ weight[0]
    found = ScalarModel(model).scores(*right_pad(LENGTHS, PAD))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", BUILT)
@torch.no_grad()
def test_a_built_class_with_two_layers(kind: str, tmp_path: Path) -> None:
    """It is saved, loads again, and the lines of docs/models.md load it together."""
    model = load_scalar(sft_folder(kind), num_labels=3, **{LAYERS: 2})
    for weight in model.score.parameters():
        weight.normal_(std=0.3)
    ids, mask = right_pad(LENGTHS, PAD)
    save_model(model, toy_tokenizer(), tmp_path)
    again = ScalarModel(load_scalar(tmp_path))
    assert torch.equal(again.scores(ids, mask), ScalarModel(model).scores(ids, mask))
    code = lines("classifier") + lines("reward_model").replace(
        "AutoModelForSequenceClassification.from_config(config)", "classifier(config)(config)"
    )
    found: dict[str, Any] = {}
    exec(code, found)
    stock = found["reward_model"](str(tmp_path)).eval()
    logits = stock(input_ids=ids, attention_mask=mask.long()).logits
    values = expected_rating(logits)
    torch.testing.assert_close(values, again.scores(ids, mask), **CLOSE)
