"""The experiments, each a file with the same four functions: load, ask, read_off, measure."""
