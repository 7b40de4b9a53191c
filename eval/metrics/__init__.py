"""Computes metrics and effects from records."""
