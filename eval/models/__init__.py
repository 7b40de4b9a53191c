"""A checkpoint: what it is called, where it lies, how it is loaded, how a prompt is written for it."""
