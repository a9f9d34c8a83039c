"""What the norm tells: what a perturbation does at every radius, and how to choose one."""
