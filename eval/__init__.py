"""Evaluates a checkpoint on the experiments of Ganguli et al. 2023. Imports nothing from train or reward."""
