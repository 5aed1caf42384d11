"""Configuration of all three stages: one YAML file, one tree of frozen dataclasses."""

from cores.config.lora import LoraSection
from cores.config.parse import parse_config, plain
from cores.config.ppo import AdamSection, CoatiSection, PPOSection
from cores.config.schema import (
    CheckpointSection,
    Config,
    DataSection,
    FaultsSection,
    LoggingSection,
    ModelSection,
    RewardSection,
    RoleTemplate,
    RolloutSection,
    SFTSection,
    SourceSection,
    TemplateSection,
)
from cores.config.validate import check_run
