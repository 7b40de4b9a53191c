"""Ways to get probabilities and samples from a model. Each one implements eval.types.Scorer."""
