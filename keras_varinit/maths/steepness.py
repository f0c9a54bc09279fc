"""Functions defined by their squared slopes, which weight backpropagated gradients."""

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from keras_varinit.maths.quadrature import Activation

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """Squared slopes at sorted `places`, (points,) each, and their mean if known."""

    places: Array
    squares: Array
    mean: float | None

    @functools.cached_property
    def _entries(self) -> tuple[bytes, bytes, float | None]:
        return self.places.tobytes(), self.squares.tobytes(), self.mean

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)


def steep(places: Array, squares: Array, mean: float | None = None) -> Activation:
    """A function with squared slopes `squares` at `places`, (points,) each; `mean` is their E."""
    places, first = np.unique(places, return_index=True)
    squares = np.maximum(squares[first], 0.0)
    slopes = np.sqrt(squares)
    rises = np.diff(places) * (slopes[1:] + slopes[:-1]) / 2
    values = np.concatenate([[0.0], np.cumsum(rises)])
    ends = slopes[[0, -1]]

    def function(s: Array) -> Array:
        below, above = np.minimum(s - places[0], 0.0), np.maximum(s - places[-1], 0.0)
        return np.asarray(np.interp(s, places, values) + below * ends[0] + above * ends[1])

    return Activation("steep", function, (_Table(places, squares, mean),))


def softened(function: Activation | None, share: float) -> Activation | None:
    """`steep` for a gradient of which only a `share` is weighted; None if the mean is unknown."""
    table = function.key[0] if function is not None and function.name == "steep" else None
    if not isinstance(table, _Table) or not table.mean:
        return None
    return steep(table.places, share * table.squares / table.mean + 1 - share, 1.0)
