"""Shared code of the three stages: configuration, data, models, rollout, PPO and runtime."""
