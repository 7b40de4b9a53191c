"""Results on Weights & Biases: runs, dashboards, and what was sent already."""
