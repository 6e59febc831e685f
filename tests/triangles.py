"""The triangle inequality, counted over all triples of a table of distances."""

import numpy as np


def violations(distances, share=1e-3):
    """How often a direct way is longer than one over a third point, by more than a share of it.

    Arguments:
        distances: (L, L).
        share: Of the direct way.

    Returns:
        Of the L (L - 1) (L - 2) / 2 ways over a third point.
    """
    first, second = np.triu_indices(len(distances), 1)
    direct = (1 - share) * distances[first, second]
    return sum(int((direct > row[first] + row[second]).sum()) for row in distances)
