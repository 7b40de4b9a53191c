"""Statistics that are independent of language models."""
