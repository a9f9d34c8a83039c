"""Serving: perturbed models that others ask, rows with different perturbations in one batch."""
