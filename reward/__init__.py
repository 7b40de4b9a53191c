"""Says what is good: reward models from human preferences."""
