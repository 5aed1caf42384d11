"""Rewards from the user's Python functions: `file.py:function` in `ppo.rewards`."""
