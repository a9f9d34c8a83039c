"""From set to set: perturbations derived from perturbations.

    scaled      at shares of their radius                                 scaling
    flipped     in the opposite direction                                 scaling
    projected   the part of vectors inside or outside a subspace          projection
    shrunk      as small as they can be and still do what they do         shrinking
    followed    vectors optimised anew at each of many radii              continuation
    sparse      the few coordinates of a basis that carry the effect      sparsity
    between     on the great circle from one vector to another            combining
    averaged    the mean of vectors that share an effect                  combining
    ungated     adapters that write the same at every token               ungating

Each takes a set and returns one whose score ``parent`` is the row of the given set that each was
derived from. In a run the same are rows with a parent (`educe.derive.listing`): their texts, their
scores and the report come as those of any other perturbation.
"""

from educe.derive.combining import averaged, between
from educe.derive.continuation import followed
from educe.derive.projection import projected
from educe.derive.scaling import flipped, scaled
from educe.derive.shrinking import shrunk
from educe.derive.sparsity import sparse
from educe.derive.ungating import ungated

__all__ = [
    "averaged",
    "between",
    "flipped",
    "followed",
    "projected",
    "scaled",
    "shrunk",
    "sparse",
    "ungated",
]
