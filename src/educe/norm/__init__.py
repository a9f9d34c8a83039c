"""What the norm of a perturbation tells: response curves, choices of the radius, comparisons."""
