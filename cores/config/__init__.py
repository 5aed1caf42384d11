"""Configuration of all three stages: one YAML file, one tree of frozen dataclasses."""

from cores.config.data import DataSection, SourceSection
from cores.config.parse import parse_config, plain
from cores.config.ppo import AdamSection, CoatiSection, LoraSection, PPOSection
from cores.config.schema import (
    CheckpointSection,
    Config,
    FaultsSection,
    LoggingSection,
    ModelSection,
    RewardSection,
    RolloutSection,
    SFTSection,
)
from cores.config.template import RoleTemplate, TemplateSection
from cores.config.validate import check_run
