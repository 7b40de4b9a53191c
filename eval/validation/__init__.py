"""Checks whether the metrics find planted effects."""
