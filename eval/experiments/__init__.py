"""The experiments. Each is a module with files, load, orders, sample, ask, read_off and measure."""
