"""Comparisons of perturbations of a run, from its tables alone; nothing here runs a model."""
