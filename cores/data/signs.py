"""What columns tell of the rows that hold them: advice for errors."""

from cores.config.data import Format
from cores.data.files import separator_hint

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
"""By which columns the rows of a preset are known (cores/data/presets.py)."""

BESIDE = ("system", "history")
"""Columns that say what stood before the prompt, beside one that holds the last turn."""
REFUSED = {
    **dict.fromkeys(("label", "kto_tag"), "whether the reply is wanted; format kto reads it"),
    **dict.fromkeys(BESIDE, "what stood before the prompt"),
    "system_prompt": "what stood before the prompt; columns {system: system_prompt} reads it",
    "tools": "the tools that could be called",
    "images": "images",
    "image": "an image",
    "parent_id": "the message that it answers; format oasst reads it",
}
"""Columns that change what a row teaches where nothing reads them. Stage 3 hands them to reward
functions; a text's label is what it is about."""


def column_hints(columns: list[str], key: str) -> str:
    """Sentences on what may be wrong: the preset that reads such rows was not named, or columns are
    separated by another sign; empty if nothing is known."""
    found = next((name for signs, name in SIGNS.items() if set(signs) <= set(columns)), None)
    preset = "" if found is None else f" Perhaps these are rows for {key}.format {found}."
    return preset + separator_hint(columns)
