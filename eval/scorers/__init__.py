"""Ways of getting probabilities and samples from a model, each a file behind eval.types.Scorer."""
