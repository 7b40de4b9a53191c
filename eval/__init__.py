"""Measures a checkpoint: the three experiments of Ganguli et al. 2023. Imports nothing of train or reward."""
