"""Where rows come from, and how they are read."""

from dataclasses import dataclass, field
from typing import Literal, Optional

from cores.config.limits import number

Format = Literal[
    "instruction", "completion", "messages", "conversations", "text", "preference", "prompt",
    # presets: forms that become one of these
    "helpsteer2", "ultrafeedback", "nectar", "shp", "pku_saferlhf", "pku_saferlhf_safety", "webgpt",
    "summarize", "oasst", "kto", "openai_preference", "argilla", "label_studio",
    "caption",
]  # fmt: skip


@dataclass(frozen=True)
class OneSource:
    """Where rows come from."""

    path: Optional[str] = None
    """A file (JSON, JSONL, CSV, TSV, text or Parquet), a folder of them, or a data set id on the
    Hugging Face hub. No default: a stage that needs the source says so."""
    name: Optional[str] = None
    """Configuration (subset) of a hub data set. None: the data set's only one."""
    revision: Optional[str] = None
    """Commit, branch or tag of a hub data set. None: its main branch."""
    split: str = "train"
    """Split to train on, of a hub data set, a saved one, or a folder whose files are named by their
    splits. Other files have the one split "train"."""
    test_path: Optional[str] = None
    """Held-out rows, as `path`. None: `test_split`, or what a folder's files say, or else
    `data.test_fraction` of the rows."""
    test_split: Optional[str] = None
    """Split held out, of what has splits. None: of a folder the one that is not "train", of others
    `data.test_fraction` of the rows."""
    format: Optional[Format] = None
    """How to read a row (docs/data.md): a form of columns, or a preset for the rows of a data set
    or a tool. None: from the columns, which is enough unless they fit several forms and the stage's
    own choice is not wanted, or a preset is needed."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the columns are called: `{prompt: question, reply: answer}`. Known are prompt, reply,
    history, system, input, messages, text, chosen, rejected, score, margin, label and image. Empty:
    as the formats know them."""
    image_folder: Optional[str] = None
    """Where images that rows name by file are found, beside the data file. None: its own folder."""
    similarity: float = number(0.24)
    """Of interleaved rows (MMC4's form): how like an image and its sentence must be, 0 to 1, for
    the image to stand before it; OpenFlamingo's value."""
    most_images: int = number(6, above=0)
    """Of interleaved rows: images of a row at most, the first; OpenFlamingo's value."""
    ignore: list[str] = field(default_factory=list)
    """Columns, and keys of a turn, that mean something and are left out knowingly: docs/data.md has
    those that are refused otherwise."""
    limit: Optional[int] = number(None, above=0)
    """Rows read at most, from the first. None: all."""
    transcripts: bool = False
    """Take texts apart into turns at "Human:" and "Assistant:" after an empty line (hh-rlhf's
    form). Off: such a text is one turn, or with template.kind none verbatim."""
    prompt_tokens: int = number(8, above=0)
    """Tokens at the beginning of a row of format text that are its prompt in stage 3; a few words,
    as in sentiment tuning (Ziegler et al. 2019 take 32)."""


@dataclass(frozen=True)
class WeightedSource(OneSource):
    """One of several sources, in a list: `- {path: FILE, weight: 2}`."""

    weight: float = number(1.0, above=0)
    """Share of the training rows, relative to the other sources', above 0; kept exactly, by
    repeating or leaving out rows. Equal by default."""
    loss_weight: Optional[float] = number(None, above=0)
    """Stage 1, given for all sources or none: the loss of a step is the sum over sources of this
    times the mean over the source's trained tokens. None: one mean over the tokens of all."""


@dataclass(frozen=True)
class SourceSection(OneSource):
    """The source of a stage, or several with weights."""

    sources: list[WeightedSource] = field(default_factory=list)
    """Several sources in place of `path`, each with its weight. Empty: the one of `path`."""
    weigh: Literal["rows", "tokens"] = "rows"
    """What the weights of several sources are shares of."""
    streaming: bool = False
    """Read rows of format text while training, for sets that do not fit in memory; stage 1 only,
    and needs sft.max_steps. Off: a shuffle of all rows is better where they fit."""

    def items(self, key: str) -> list[tuple[str, OneSource]]:
        """Its sources and their dotted keys: those of the list, or itself, at `key`."""
        several = enumerate(self.sources)
        return [(f"{key}.sources[{i}]", source) for i, source in several] or [(key, self)]


@dataclass(frozen=True)
class DataSection:
    """The three data sets and how they are split."""

    sft: SourceSection = field(default_factory=SourceSection)
    """Demonstrations for stage 1."""
    preference: SourceSection = field(default_factory=SourceSection)
    """Pairs for stage 2."""
    prompts: SourceSection = field(default_factory=SourceSection)
    """Prompts for stage 3."""
    test_fraction: float = number(0.1, below=1)
    """Share of rows held out, 0 to 1, chosen by a hash of the first user turn: rows of one prompt
    stay on one side, the same in every stage, so that stage 3 is judged on unseen prompts."""
    too_long: Literal["cut", "drop", "split"] = "cut"
    """What becomes of rows of stages 1 and 2 that are longer than their max_length: they lose their
    end, are left out, or in stage 1 go on in further rows (texts without turns). Counted."""
    join: Optional[str] = None
    """Stage 1 reads texts without turns as one endless text, this before each, cut every
    sft.max_length tokens, without stop tokens. None: a row a text."""
    join_opening: str = ""
    """With join: text at the beginning of each of these rows."""
    overlap: int = number(0, least=0)
    """Stage 1: tokens that a row of a text that is cut (join, or too_long split) repeats from the
    end of the one before, as context that is not learned again. 0: rows lie side by side."""
    inspect: int = 0
    """Print this many rows of the stage's data, trained tokens coloured, and stop. 0: train."""
    inspect_json: Optional[str] = None
    """Write the rows of the stage's data, a line each, with ids, labels and segments of trained and
    untrained text, and a rating's score and class, into this file, and stop."""

    @property
    def inspecting(self) -> bool:
        """The stage shows its rows, and writes, removes and claims nothing else."""
        return bool(self.inspect or self.inspect_json)
