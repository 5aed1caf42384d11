"""Configuration of all three stages: one YAML file, one tree of frozen dataclasses."""

from cores.config.parse import parse_config, plain
from cores.config.schema import (
    Config,
    LoggingSection,
    LoraSection,
    ModelSection,
    PPOSection,
    RewardSection,
    RoleTemplate,
    SFTSection,
    TemplateSection,
)
from cores.config.sources import DataSection, SourceSection

__all__ = [
    "Config",
    "DataSection",
    "LoggingSection",
    "LoraSection",
    "ModelSection",
    "PPOSection",
    "RewardSection",
    "RoleTemplate",
    "SFTSection",
    "SourceSection",
    "TemplateSection",
    "parse_config",
    "plain",
]
