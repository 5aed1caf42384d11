"""Held-out rows of stage 1, and how likely policies find them."""

import math
from dataclasses import dataclass
from typing import Any

from cores.data import inputs, sft_data
from cores.data.encode import IGNORED
from cores.models.images import image_processor, reads_images
from cores.models.loading import load_config
from cores.training.sft import row_losses
from scripts.evaluation.runs import Judged, Row, as_trained
from scripts.evaluation.stats import Estimate, ratio

LARGEST = 700.0
"""Nats whose exponential a float holds."""


@dataclass(frozen=True)
class Demonstrations:
    """Held-out rows of stage 1."""

    rows: list[Row]
    images: Any
    """The reader of images, where the base has one."""

    @classmethod
    def held_out(cls, judged: Judged) -> "Demonstrations | None":
        """Those of the configuration; None, and a word why, where there are none."""
        config, tokenizer, section = judged.config, judged.tokenizer, judged.config.data.sft
        assert tokenizer is not None, "there is no policy without stage 1"
        if section.path is None and not section.sources:
            judged.leave_out("perplexity", "data.sft.path is not set")
            return None
        base, images = load_config(judged.stages["sft"].folder), None
        if reads_images(base):
            images = image_processor(config, base, tokenizer, judged.launch.sharding.stage)
        rows = sft_data(config, tokenizer, inputs(base, images)).test
        if not rows:
            judged.leave_out("perplexity", "no rows are held out (data.test_fraction is 0)")
            return None
        return cls(rows, images)

    def losses(self, judged: Judged, model: Any) -> dict[str, Any]:
        """Nats a trained token, and their exponential: the perplexity; intervals by prompt."""
        size = judged.config.sft.microbatch_size
        with as_trained(model, judged.config.model.attention):
            found = row_losses(model, self.rows, size, judged.launch, self.images)
        nats, tokens = zip(*found, strict=True)
        loss = ratio(nats, tokens, [_prompt(row) for row in self.rows])
        limits = (math.exp(min(x, LARGEST)) for x in (loss.value, loss.low, loss.high))
        return {"perplexity": Estimate(*limits).to_json(), "loss": loss.to_json()}


def _prompt(row: Row) -> tuple[int, ...]:
    """What stands before the first trained token: rows hang together by it."""
    if "encoder_ids" in row:
        return tuple(row["encoder_ids"])
    first = next((i for i, label in enumerate(row["labels"]) if label != IGNORED), 0)
    return tuple(row["input_ids"][:first]) or tuple(row["input_ids"])
