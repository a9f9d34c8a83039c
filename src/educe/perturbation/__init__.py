"""What is done to a model: sets of perturbations, what their numbers mean, where they belong."""
