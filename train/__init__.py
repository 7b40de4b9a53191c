"""Training of policies: RLHF with checkpoints at scheduled steps, each evaluated when it is saved."""
