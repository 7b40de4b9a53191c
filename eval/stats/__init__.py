"""Statistics that know nothing of language models."""
