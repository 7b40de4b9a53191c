"""Templates of the probe, written for this project."""
