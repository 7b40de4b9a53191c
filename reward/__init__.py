"""Reward models from human preferences: training, scoring and reports."""
