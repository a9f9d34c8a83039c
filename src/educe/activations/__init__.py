"""On or off the manifold: which activations really occur, and where perturbations lead."""
