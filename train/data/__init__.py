"""Training examples of our own writing."""
