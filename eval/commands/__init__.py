"""What the command line calls: run, watch, compare, list, measure, score."""
