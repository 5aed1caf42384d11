"""What a family must have to go through all stages, and the start of the roles in each."""

from typing import Any

import pytest
import torch
from _models import (
    BUILT,
    FAMILIES,
    LAUNCH,
    PAD,
    PROMPTS,
    model_config,
    parents,
    ppo_config,
    toy_tokenizer,
)
from transformers import (
    BambaConfig,
    CpmAntConfig,
    CTRLConfig,
    FuyuConfig,
    Llama4TextConfig,
    MambaConfig,
    RwkvConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from cores.data import left_pad
from cores.errors import UserError
from cores.models.heads import classifier_of
from cores.models.loading import check_scalar, scalar_problem
from cores.models.rows import Rows
from cores.models.vocabulary import check_cap
from cores.ppo import build_roles


@pytest.mark.parametrize("kind", [*FAMILIES, *BUILT])
@torch.no_grad()
def test_roles_at_the_start(kind: str) -> None:
    """Invariants 10, 12: no head has a bias, so that folding 1/std into its weight scales the
    score; critic = reward model, and reference = actor, before the first update."""
    roles = build_roles(ppo_config(), toy_tokenizer(), parents(kind), LAUNCH)
    assert roles.reward.model.score.bias is None
    ids, mask = left_pad(PROMPTS, PAD)
    values = roles.critic.module(ids, mask)
    assert torch.equal(values[mask], roles.reward(ids, mask)[mask])
    assert values[mask].std() > 0.1
    own, _ = roles.actor.module(ids, mask, 1)
    with roles.reference() as reference:
        theirs, _ = reference.logprobs(Rows(ids, mask, 1))
    assert torch.equal(own, theirs)


def test_low_caps_are_refused() -> None:
    """Invariant 3: logits capped at 30 keep pad out (exp(-30)); capped at 5 they would not."""
    check_cap(model_config("gpt2"))
    check_cap(model_config("gemma2"))
    with pytest.raises(UserError, match=r"model\.path: final_logit_softcapping of gemma2 is 5"):
        check_cap(model_config("gemma2", final_logit_softcapping=5.0))


@pytest.mark.parametrize("kind", [*FAMILIES, *BUILT])
def test_every_family_has_a_reward_model(kind: str) -> None:
    """Invariant 25: a class with a linear head, stock or ours; no weights are made to find out."""
    assert scalar_problem(model_config(kind, rows=2**40)) is None


@pytest.mark.parametrize(
    "kind",
    [BambaConfig, CpmAntConfig, CTRLConfig, FuyuConfig, Llama4TextConfig, MambaConfig, RwkvConfig],
)
def test_families_without_a_reward_model(kind: Any) -> None:
    """Invariant 25: a state that padding would enter (Bamba, Mamba, RWKV), no mask (CpmAnt), images
    (Fuyu), a body whose weights the language model names otherwise (Llama 4), or a stock class with
    a head of another name, which would read a folder of ours with random numbers (CTRL)."""
    config = kind()
    config.architectures = ["ItsNameForCausalLM"]
    with pytest.raises(UserError, match=r"model\.path: ItsNameForCausalLM has no") as error:
        check_scalar(config)
    assert "Llama" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_class_takes_the_name_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 25: its folder would be read as the other family's."""
    names = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    monkeypatch.setitem(names, "another", "CohereForSequenceClassification")
    classifier_of.cache_clear()
    assert scalar_problem(model_config("cohere")) is not None
    classifier_of.cache_clear()
