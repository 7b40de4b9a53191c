"""Training examples, written for this project."""
