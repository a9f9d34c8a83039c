"""From set to set: perturbations derived from perturbations.

    scaled      at shares of their radius                                 scaling

Each takes a set and returns one whose score ``parent`` is the row of the given set that each was
derived from; the score ``number``, which sets from a run have, goes with it.
"""

from educe.derive.scaling import scaled

__all__ = ["scaled"]
