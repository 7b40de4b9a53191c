"""Checkpoints: their names and places, how they are loaded, and how prompts are written for them."""
