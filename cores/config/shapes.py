"""Shapes of models that do not go together: what is trained, and how it attends."""

from collections.abc import Iterator

from cores.config.schema import Config


def shape_problems(config: Config) -> Iterator[str]:
    """Sentences "KEY: what is wrong; what to do", as `validate` has them."""
    model, sft = config.model, config.sft
    parts = {
        "sft.lora.rank": sft.lora.rank > 0,
        "sft.prefix_tokens": sft.prefix_tokens > 0,
        "model.trainable": bool(model.trainable),
    }
    given = [key for key, there in parts.items() if there]
    if len(given) > 1:
        yield f"{given[-1]}: stands beside {given[0]}, which trains something else; remove one."
    if model.from_config and given and given[0] != "model.trainable":
        yield (
            f"model.from_config: its random weights are nowhere to be read again, and {given[0]} "
            "leaves them untrained beside what it saves; remove one of the two."
        )
    if sft.prefix_tokens and model.gradient_checkpointing:
        yield (
            "model.gradient_checkpointing: computes layers again without the keys and values of "
            "sft.prefix_tokens; set it to false."
        )
    if sft.prefix_tokens and sft.packing:
        yield (
            "sft.packing: rows side by side cannot each have the keys and values of "
            "sft.prefix_tokens before them; set it to false."
        )
    if model.attention == "prefix":
        if sft.packing:
            yield "sft.packing: has no mask for the prompts of model.attention prefix; turn it off."
        if sft.loss_on == "all":
            yield (
                "sft.loss_on: with model.attention prefix tokens of a prompt see what is behind "
                "them, so there is nothing to learn from them; set it to assistant or last."
            )
        if config.ppo.ptx_coef:
            yield (
                "ppo.ptx_coef: mixes in rows of stage 1, whose prompts are of other lengths than "
                "model.attention prefix has masks for in stage 3; set it to 0."
            )
