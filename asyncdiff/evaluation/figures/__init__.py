"""Figures of level maps, likelihoods, samples and ablations. Import most modules lazily: they import matplotlib."""
