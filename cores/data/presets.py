"""Presets of `format`: rows of well-known data sets and tools become the standard columns.

A preset tells the replies to each prompt and their scores (cores/data/preset_readers.py); what a
stage takes of them is the same for all (cores/data/comparisons.py).
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

from cores.config.data import OneSource
from cores.config.schema import Config
from cores.data.comparisons import Job, MisfitError, number, rows_of
from cores.data.formats import Format, Stage
from cores.data.preset_readers import (
    PresetReader,
    each,
    helpsteer2,
    kto,
    label_studio,
    picked,
    rated_pair,
    several,
    summary,
    two,
    ultrafeedback,
)
from cores.data.sources import Row
from cores.data.trees import read_trees
from cores.errors import UserError

MADE: dict[Stage, Format] = {"sft": "completion", "reward": "preference", "ppo": "prompt"}
"""The format of the rows that a preset makes for a stage; scored replies are completions."""


@dataclass(frozen=True)
class Preset:
    """How the rows of one form are read."""

    expects: str
    """The form, for errors."""
    read: PresetReader
    """All rows of a source to its prompts and their replies; MisfitError for another form."""
    uses: str
    """Columns that are read, with spaces between; in stages 1 and 2 the others stand beside what is
    made of these."""
    least: float = -math.inf
    """Score that a reply has at least to be taken by stage 1."""
    transcript: bool = False
    """The prompt is a transcript in hh-rlhf's form."""


def _two_scores(row: Row) -> tuple[float | None, float | None]:
    return number(row, "score_0"), number(row, "score_1")


def _pku(column: str) -> Preset:
    return Preset(
        f"{{prompt, response_0, response_1, {column}}}",
        each(two("prompt", "response_0", "response_1", picked(column, 0))),
        f"prompt response_0 response_1 {column}",
    )


PRESETS: dict[Format, Preset] = {
    # nvidia/HelpSteer2, its ratings and its folder "preference"; strength 3: the second much better
    "helpsteer2": Preset(
        "{prompt, response, helpfulness}, the replies to one prompt one after another, or {prompt, "
        "response_1, response_2, preference_strength}",
        helpsteer2,
        "prompt response helpfulness response_1 response_2 preference_strength",
    ),
    # openbmb/UltraFeedback; HuggingFaceH4/ultrafeedback_binarized
    "ultrafeedback": Preset(
        "{instruction, completions: [{response, overall_score}, ..]} or {prompt, chosen, rejected, "
        "score_chosen, score_rejected}",
        each(ultrafeedback),
        "instruction completions prompt chosen rejected score_chosen score_rejected",
    ),
    # berkeley-nest/Nectar; rank 1 is the best
    "nectar": Preset(
        '{prompt: "\\n\\nHuman: ..\\n\\nAssistant: ", answers: [{answer, rank}, ..]}',
        each(several("prompt", "answers", "answer", "rank", -1)),
        "prompt answers",
        transcript=True,
    ),
    # stanfordnlp/SHP; labels 1: A has more votes
    "shp": Preset(
        "{history, human_ref_A, human_ref_B, labels}",
        each(two("history", "human_ref_A", "human_ref_B", picked("labels", 1))),
        "history human_ref_A human_ref_B labels",
    ),
    # PKU-Alignment/PKU-SafeRLHF, by helpfulness and by harmlessness
    "pku_saferlhf": _pku("better_response_id"),
    "pku_saferlhf_safety": _pku("safer_response_id"),
    # openai/webgpt_comparisons; scores sum to 0, and both are 0 for a tie
    "webgpt": Preset(
        "{question: {full_text}, answer_0, answer_1, score_0, score_1}",
        each(two("full_text", "answer_0", "answer_1", _two_scores), inside="question"),
        "full_text answer_0 answer_1 score_0 score_1",
    ),
    # openai/summarize_from_feedback, configuration "comparisons"
    "summarize": Preset(
        "{info: {subreddit, title, post} or {article}, summaries: [{text}, {text}], choice}",
        each(summary, inside="info"),
        "subreddit title post article summaries choice",
    ),
    # OpenAssistant/oasst1, OpenAssistant/oasst2
    "oasst": Preset(
        "trees {message_tree_id, prompt: {text, role, replies: [..]}}, or a row a message: "
        "{message_id, parent_id, role, text, rank}",
        read_trees,
        "prompt message_id parent_id role text rank deleted replies",
    ),
    # TRL's unpaired preferences, also in LLaMA-Factory's columns
    "kto": Preset(
        "{prompt, completion, label: true or false}, or kto_tag for the label, and messages, "
        "conversations or instruction + output for the rest",
        kto,
        "prompt completion label kto_tag messages conversations instruction input output",
        least=1,
    ),
    # https://platform.openai.com/docs/guides/direct-preference-optimization
    "openai_preference": Preset(
        "{input: {messages}, preferred_output: [turn], non_preferred_output: [turn]}",
        each(
            two("messages", "preferred_output", "non_preferred_output", lambda row: (1.0, 0.0)),
            inside="input",
        ),
        "messages preferred_output non_preferred_output",
    ),
    # argilla/dpo-mix-7k and other pairs whose two sides were rated
    "argilla": Preset(
        "{chosen, rejected, chosen_rating, rejected_rating} (or rating_chosen, score_chosen, ..), "
        "whole conversations or replies to a column prompt",
        each(rated_pair),
        "prompt chosen rejected chosen_rating rejected_rating rating_chosen rating_rejected "
        "chosen-rating rejected-rating score_chosen score_rejected chosen_score rejected_score",
    ),
    # Label Studio's JSON export of its template for human preferences
    "label_studio": Preset(
        "{data: {prompt, answer1, answer2}, annotations: [{result: [{type: pairwise, value: "
        "{selected: left or right}}]}]}",
        each(label_studio, inside="data"),
        "prompt answer1 answer2 annotations",
    ),
}
"""By name; the id of the data set that has the form stands above each."""


def converted(
    rows: list[Row], source: OneSource, config: Config, stage: Stage, key: str
) -> tuple[list[Row], OneSource, Counter[str] | None]:
    """Rows in standard columns, the source as it is to be read then, and what was made of what.
    Where `format` names no preset rows and source are as they were, and the third is None.

    Raises UserError for a row that the preset does not fit, and if the stage gets nothing of them.
    """
    name = source.format
    preset = None if name is None else PRESETS.get(name)
    if preset is None:
        return rows, source, None
    job = Job(stage, config, source, key, Counter({f"rows read by {name}": len(rows)}))
    pairwise = stage != "reward" or config.reward.kind == "pairwise"
    form = f"{key}.format {name}" + ("" if pairwise else f" under reward.kind {config.reward.kind}")
    try:
        made = rows_of(preset.read(rows, job), preset.uses, preset.least, job)
    except MisfitError as misfit:
        raise UserError(
            f"{misfit}, which does not fit {form}. It expects {preset.expects}; correct the row, "
            "or choose another format (docs/data.md)."
        ) from None
    counts = +job.counts  # without what did not occur
    if not made:
        told = ", ".join(f"{what}: {n}" for what, n in counts.items())
        raise UserError(
            f"{form}: nothing of {source.path!r} is left for this stage ({told}); give other rows, "
            "or choose another format (docs/data.md)."
        )
    transcripts = source.transcripts or (preset.transcript and config.template.kind != "none")
    wanted = MADE[stage] if pairwise else "completion"
    return made, replace(source, format=wanted, transcripts=transcripts), counts
