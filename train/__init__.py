"""Makes policies: RLHF with checkpoints at the scheduled steps, each evaluated when saved."""
