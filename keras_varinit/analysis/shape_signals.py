"""Sizes of maps."""

import math

from keras_varinit.analysis.moment_maps import Axes


def number_of_positions(axes: Axes) -> float:
    """Entries of a channel; infinite where a size is unknown."""
    return math.prod(math.inf if a.size is None else a.size for a in axes)
