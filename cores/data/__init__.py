"""Data: files or hub sets -> conversations -> segments -> ids and labels (docs/data.md)."""

from cores.data.build import (
    StageData,
    overlap,
    preference_data,
    prompt_data,
    sft_data,
)
from cores.data.collate import beside, left_pad, right_pad
from cores.data.inspect import readable, show
from cores.data.report import DataReport, MixtureReport, SplitReport
from cores.data.sides import inputs
from cores.data.stream import StreamedData, TextStream
