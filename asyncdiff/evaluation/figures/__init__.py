"""Figures of level maps, likelihoods, samples and sweeps. Most modules import matplotlib: import them lazily."""
