"""The command line: reads options from YAML and arguments, and dispatches to commands."""
