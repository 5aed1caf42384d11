"""Parts of the twin that do several layers' work in one kernel: the numbers of the plain model.
Plain torch stands in for the kernels."""

import sys
from typing import Any

import pytest
import torch
from _engines import plain_kernels
from _models import policy_of
from torch import Tensor, nn
from torch.nn.functional import dropout

from cores.rollout.residual import Branch, Sum, delay_sums

KINDS = ("gpt2", "opt", "gpt_neox", "llama", "qwen2", "qwen3")
IDS = torch.tensor([[5, 9, 13, 20], [7, 8, 9, 10]])


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the fused norm, over plain torch; the branches that were added by it."""
    for name in ("cores.rollout.kernels", "cores.rollout.norms"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    kernels = plain_kernels()
    monkeypatch.setitem(sys.modules, "cores.rollout.kernels", kernels)
    from cores.rollout import norms

    added: list[Tensor] = []
    plain = kernels.norm

    def noted(*args: Any) -> Tensor:
        added.extend(args[5:6])
        return plain(*args)

    monkeypatch.setattr(norms, "norm", noted)
    vars(norms)["added"] = added
    return norms


def logits_of(model: Any) -> Tensor:
    """Of IDS, without the excluded, under autocast."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return model(IDS).logits[..., 1:60].float()


@pytest.mark.parametrize("kind", KINDS)
def test_sums_by_the_norms(kind: str, norms: Any) -> None:
    """The logits of a model whose norms add to the residual stream are, bit for bit, those of one
    with the same norms that does not; every sum but the two of GPT-NeoX is added so."""
    model = policy_of(kind)
    norms.fuse_norms(model)
    expected = logits_of(model)
    assert norms.added == []
    delay_sums(model)
    found = logits_of(model)
    assert len(norms.added) == (0 if kind == "gpt_neox" else 4)
    assert type(found) is Tensor
    assert torch.equal(found, expected)


def halves() -> tuple[Tensor, Branch, Tensor]:
    """A residual, a branch, and their sum."""
    torch.manual_seed(0)
    residual, branch = torch.randn(2, 1, 8), torch.randn(2, 1, 8).bfloat16()
    return residual, branch.as_subclass(Branch), residual + branch


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x * 2,
        lambda x: 1 + x,
        lambda x: x.mT,
        lambda x: x.tolist(),
        lambda x: x[0],
        lambda x: x.add_(1).sum(),
        lambda x: torch.cat([torch.ones(1, 1, 8), x]),
        lambda x: nn.functional.layer_norm(x, (8,)),
        lambda x: x.view(-1, 8).reshape(16)[3:],
        lambda x: x.reshape(-1, x.size(-1)) * x.shape[0],
        lambda x: x.view(torch.int32),
    ],
)
def test_whoever_asks_for_numbers_has_them(use: Any) -> None:
    residual, branch, expected = halves()
    wanted = use(expected.clone())
    for made in (residual + branch, branch + residual, torch.add(residual, branch)):
        assert type(made) is Sum
        assert made.waits
        made.total.fill_(9.0)  # what memory holds before it is written
        found = use(made)
        assert type(found) is type(wanted)
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted))


def test_what_a_sum_is_added_to() -> None:
    """A sum that was not asked for is added before the next branch is; sums of other kinds are
    plain."""
    residual, branch, once = halves()
    again = (residual + branch) + branch
    assert type(again) is Sum
    assert torch.equal(again * 1, once + branch)
    for other in (branch, residual.bfloat16(), residual.double(), residual[:1], 1.0):
        plain = torch.add(other, torch.Tensor.float(branch).bfloat16()) if other is branch else None
        found = other + branch
        assert not isinstance(found, Sum), type(other)
        assert plain is None or torch.equal(found, plain)


def test_dropout_of_a_branch() -> None:
    """That which does nothing lets it pass; that of training does not."""
    _, branch, _ = halves()
    assert dropout(branch, 0.5, training=False) is branch
    assert nn.Dropout(0.5).eval()(branch) is branch
    assert type(dropout(branch, 0.5, training=True)) is Tensor
