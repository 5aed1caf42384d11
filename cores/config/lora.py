"""Adapters, as all stages know them."""

from dataclasses import dataclass
from typing import Literal, Optional

from cores.config.limits import number


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (Hu et al. 2021) instead of full fine-tuning."""

    rank: int = number(0, most=16384)
    """Rank of the adapters. 0: train all weights."""
    alpha: float = number(16.0, above=0)
    """Adapters are scaled by alpha / rank."""
    dropout: float = number(0.0, below=1)
    """Dropout before the adapters, 0 to 1; stage 3 needs 0 (old and new log-probs must agree)."""
    target_modules: Optional[list[str]] = None
    """Names of the layers adapted. None: every linear layer but the head."""
    merge: bool = True
    """Write the merged model too, so that the folder loads like any other. Off: the adapter alone,
    in peft's form, which saves disk and needs its base wherever it is used."""
    share_base: Literal["auto", "true", "false"] = "auto"
    """Stage 3: actor, reference, critic and reward model over one frozen base in memory, each with
    adapters of its own, which takes that stage 2 trained an adapter on stage 1's model. auto: where
    it can be, and a line says what is shared; else reward model and critic share theirs where they
    can. true: or an error. false: critic and reward model have a base each."""
