"""Prefix attention against masks made by hand, in the families that can, and who is refused."""

from typing import Any

import pytest
import torch
from _families import family_config
from transformers import AutoModelForCausalLM, CodeGenConfig, GlmConfig, MistralConfig

from cores.errors import UserError
from cores.models import Actor
from cores.models.attention import attend_both_ways, check_prefix
from cores.models.body import causal_mask
from cores.models.tuning import add_prefix
from cores.rollout.engine import Sampling
from cores.rollout.hf import HFEngine

GLM = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
CODEGEN = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
WAYS = [
    *((kind, how) for kind in ("llama", "glm", "gpt_neox", "gpt2") for how in ("sdpa", "eager")),
    ("codegen", "eager"),
]
ROWS = [[7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 23]]
"""Of 4 and 2 tokens of prompt."""
PROMPTS = [4, 2]


def model_of(kind: str, how: str = "sdpa") -> Any:
    """A random model with large weights, so that what a token sees shows."""
    common = {"vocab_size": 64, "initializer_range": 0.25}
    if kind == "glm":
        config: Any = GlmConfig(**GLM, **common)
    elif kind == "codegen":
        config = CodeGenConfig(**CODEGEN, **common)
    else:
        config = family_config(kind, **common)
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, attn_implementation=how).eval()


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """ROWS padded on the right, and which are tokens."""
    ids = torch.tensor([row + [0] * (7 - len(row)) for row in ROWS])
    return ids, torch.tensor([[1] * len(row) + [0] * (7 - len(row)) for row in ROWS])


def by_hand(virtual: int = 0) -> torch.Tensor:
    """(2, 1, 7, virtual + 7) of zeros where a token is seen, and very low numbers elsewhere."""
    mask = torch.full((2, 1, 7, virtual + 7), torch.finfo(torch.float32).min)
    for i, (row, prompt) in enumerate(zip(ROWS, PROMPTS, strict=True)):
        for query in range(7):
            for key in range(7):
                real = key < len(row) and query < len(row)
                if query == key or (real and (key <= query or key < prompt)):
                    mask[i, 0, query, virtual + key] = 0
        mask[i, 0, :, :virtual] = 0
    return mask


@pytest.mark.parametrize(("kind", "how"), WAYS)
@torch.no_grad()
def test_it_is_the_mask_made_by_hand(kind: str, how: str) -> None:
    """Rows of two lengths in one batch, padding outside."""
    ids, mask = padded()
    expected = model_of(kind, how)(ids, attention_mask=by_hand()).logits
    model = model_of(kind, how)
    attend_both_ways(model)
    found = model(input_ids=ids, attention_mask=mask, prompt_length=torch.tensor(PROMPTS)).logits
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(found[i, : len(row)], expected[i, : len(row)])


@pytest.mark.parametrize(("kind", "how"), WAYS)
@torch.no_grad()
def test_prompts_are_read_both_ways_and_replies_are_not(kind: str, how: str) -> None:
    """Log-probs before a changed token: of the prompt's they change, of the reply's not."""
    model = model_of(kind, how)
    attend_both_ways(model)
    check_prefix(model, 64)
    ids, mask = padded()

    def logprobs(row: torch.Tensor) -> torch.Tensor:
        given = {"attention_mask": mask[:1], "prompt_length": torch.tensor([4])}
        return model(input_ids=row[None], **given).logits[0].log_softmax(-1)

    first = logprobs(ids[0])
    for at, sees in ((3, True), (5, False)):
        changed = ids[0].clone()
        changed[at] = 33
        gap = (logprobs(changed) - first)[:at].abs().max().item()
        assert (gap > 1e-2) == sees
        assert (gap < 1e-5) != sees


@pytest.mark.parametrize("left", [True, False])
def test_the_mask_counts_tokens_and_not_columns(left: bool) -> None:
    """A prompt of 2 of 3 tokens, with padding on either side; no prompt: causal."""
    mask = torch.tensor([[0, 0, 1, 1, 1] if left else [1, 1, 1, 0, 0]]).bool()
    begin = 2 if left else 0
    seen = causal_mask(mask, torch.tensor([2]))[0, 0, begin : begin + 3]
    assert seen[:, begin : begin + 3].tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert seen.sum() == 7
    assert torch.equal(causal_mask(mask, torch.tensor([0])), causal_mask(mask))


@pytest.mark.parametrize("kind", ["llama", "glm", "gpt_neox"])
@torch.no_grad()
def test_trained_prefixes_stand_before_it(kind: str) -> None:
    """All tokens see the virtual ones: the mask made by hand over a cache that holds them."""
    model, plain = model_of(kind), model_of(kind)
    attend_both_ways(model)
    adapted = add_prefix(model, 3).eval()
    check_prefix(adapted, 64)
    ids, mask = padded()
    cache = adapted.get_prompt(2)
    expected = plain(ids, attention_mask=by_hand(3), past_key_values=cache).logits
    lengths = torch.tensor(PROMPTS)
    found = adapted(input_ids=ids, attention_mask=mask, prompt_length=lengths).logits
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(found[i, : len(row)], expected[i, : len(row)])
    without = plain(ids, attention_mask=by_hand()).logits
    assert (found - without)[0].abs().max() > 1e-2


def test_a_family_whose_attention_is_biased_is_refused() -> None:
    model = model_of("bloom", "eager")
    attend_both_ways(model)
    with pytest.raises(UserError, match=r"model\.attention: BloomForCausalLM cannot be given"):
        check_prefix(model, 64)


def test_a_model_that_takes_no_notice_is_refused() -> None:
    """Whatever it does with the mask: here it makes one of its own."""
    model, other = model_of("llama"), model_of("llama")
    model.forward = lambda input_ids, **others: other(input_ids)
    with pytest.raises(UserError, match="in a trial LlamaForCausalLM reads prompts causally"):
        check_prefix(model, 64)
    every = torch.zeros(1, 1, 12, 12)
    model.forward = lambda input_ids, **others: other(input_ids, attention_mask=every)
    with pytest.raises(UserError, match="sees what is behind it in a reply"):
        check_prefix(model, 64)


def test_windows_are_not_widened() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=64, sliding_window=8, **sizes, **heads)
    model: Any = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="attends to windows of 8 tokens"):
        check_prefix(model, 9)


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize(("kind", "how"), [("llama", "sdpa"), ("glm", "eager"), ("gpt2", "sdpa")])
@torch.no_grad()
def test_a_policy_s_log_probs_are_under_it(kind: str, how: str, padding: bool) -> None:
    """Of replies of 3 tokens, with a shorter prompt padded on the left or alone."""
    model = model_of(kind, how)
    rows = [[7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 23, 24]] if padding else [ROWS[0]]
    ids = torch.tensor([[0] * (7 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (7 - len(row)) + [1] * len(row) for row in rows]).bool()
    actor = Actor(model, temperature=1.0, prefix=True)
    found, _ = actor(ids, mask if padding else None, 3)
    for i, row in enumerate(rows):
        seen = torch.ones(len(row), len(row)).tril().bool()
        seen[:, : len(row) - 3] = True
        low = torch.finfo(torch.float32).min
        bias = torch.zeros(seen.shape).masked_fill(~seen, low)[None, None]
        logits = model(torch.tensor([row]), attention_mask=bias).logits[0, -4:-1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(row[-3:])[:, None])[:, 0]
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompts", [[[7, 8, 9, 10], [20]], [[7, 8, 9], [20, 21, 22]]])
@pytest.mark.parametrize("kind", ["llama", "glm", "gpt2"])
def test_replies_are_sampled_behind_prompts_read_both_ways(kind: str, prompts: Any) -> None:
    """Log-probs recorded while sampling are the policy's; prompts of one token and of more, padded
    and not."""
    model = model_of(kind)
    sampling = Sampling(pad_id=0, stop_ids=[1], max_new_tokens=5, temperature=0.7)
    engine = HFEngine(model, sampling, prefix=True)
    rollout = engine.generate(prompts, torch.rand(2, 5))
    width = rollout.response_mask.shape[1]
    with torch.no_grad():
        found, _ = Actor(model, 0.7, prefix=True)(rollout.ids, rollout.mask, width)
        causal, _ = Actor(model, 0.7)(rollout.ids, rollout.mask, width)
    real = rollout.response_mask
    torch.testing.assert_close(found[real], rollout.logprobs[real], atol=1e-5, rtol=1e-5)
    assert (causal - rollout.logprobs)[0][real[0]].abs().max() > 1e-2
