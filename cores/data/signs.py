"""By which columns the rows of a preset are known: for advice where no format was named."""

from collections.abc import Collection

from cores.config.data import Format

SIGNS: dict[tuple[str, ...], Format] = {
    ("prompt", "response", "helpfulness"): "helpsteer2",
    ("prompt", "response_1", "response_2", "preference_strength"): "helpsteer2",
    ("instruction", "completions"): "ultrafeedback",
    ("prompt", "answers"): "nectar",
    ("history", "human_ref_A", "human_ref_B", "labels"): "shp",
    ("prompt", "response_0", "response_1", "better_response_id"): "pku_saferlhf",
    ("question", "answer_0", "answer_1", "score_0", "score_1"): "webgpt",
    ("info", "summaries", "choice"): "summarize",
    ("message_tree_id", "prompt"): "oasst",
    ("input", "preferred_output", "non_preferred_output"): "openai_preference",
    ("data", "annotations"): "label_studio",
}


def preset_hint(columns: Collection[str], key: str) -> str:
    """A sentence on the preset that reads rows with these columns; empty if none does."""
    found = next((name for signs, name in SIGNS.items() if set(signs) <= set(columns)), None)
    return "" if found is None else f" Perhaps these are rows for {key}.format {found}."
