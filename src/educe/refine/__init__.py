"""Perturbations that were found, changed: along the radius, sparser, quieter, ungated."""
