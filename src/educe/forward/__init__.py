"""Forward: everything that runs a model under perturbations.

    slice         what perturbations do at a layer, and derivatives of it
    generation    what the perturbed model writes
    forced        what it makes of texts that are given

In each, the blocks that no perturbation reaches run once, and rows run in `chunks` that fit into
memory.
"""
