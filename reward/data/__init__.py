"""Templates of the probe, of our own writing."""
