"""The command line: options from YAML and arguments, and which command is meant."""
