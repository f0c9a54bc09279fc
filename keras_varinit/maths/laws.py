"""Which law a signal's entries have, where it is not a Gaussian: worked out when it is asked for.

A law is told up to mean and standard deviation, which the moments know, so that what scales or
shifts a signal hands its law on.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from keras_varinit.maths.entry_laws import (
    MOST_ROOTS,
    NODES,
    STEP,
    Array,
    EntryKind,
    Shape,
    at,
    mixed,
    sample,
    shape_of,
    slopes_at,
    slopes_of,
)
from keras_varinit.maths.quadrature import Activation, normal_density

if TYPE_CHECKING:
    from keras_varinit.maths.covariance import Moments, Term

_SLOPE_STEP = 1e-3  # of slopes, in standard deviations


class Law(Protocol):
    """A law; `shape` is None for a Gaussian."""

    @property
    def shape(self) -> Shape | None:
        """The law, of mean 0 and variance 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class OfFunction:
    """f of a signal."""

    root: "Moments"
    function: Activation

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The law of f."""
        mean, std = self.root.spread
        return _of_function(self.function, _rounded(mean), _rounded(std), self.root.shape)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A share of the entries: scale·z + shift of a signal z, of which gradients count `factor`."""

    share: float
    source: "Moments"
    scale: float = 1.0
    shift: float = 0.0
    factor: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Mixed:
    """Entries of several kinds, in no order; `by_channel`: all of a channel are of one."""

    kinds: tuple[Kind, ...]
    by_channel: bool = False

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The law of the mixture."""
        found: list[EntryKind] = []
        for kind in self.kinds:
            mean, std = kind.source.spread
            scale, shift = kind.scale * std, kind.scale * mean + kind.shift
            found.append((kind.share, kind.source.shape, scale, shift, kind.factor))
        shape, scale = found[0][1:3]
        if len(found) == 1 and scale > 0:
            return shape
        if all(f[1] is None and f[2:4] == found[0][2:4] for f in found):
            return None
        return mixed(found)


def kinds_of(moments: "Moments") -> tuple[Kind, ...]:
    """The kinds of channels that a signal has; none where all are alike."""
    law = moments.own_law
    found = isinstance(law, Mixed) and law.by_channel and len(law.kinds) > 1
    return law.kinds if isinstance(law, Mixed) and found else ()


@dataclasses.dataclass(frozen=True, eq=False)
class OfRoots:
    """A function of independent signals; equal `key`s mean equal functions."""

    roots: "tuple[Moments, ...]"
    key: Any
    function: Callable[..., Array]
    slopes: Callable[..., Array] | None = None

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The law of the function; of more signals than can be followed it counts as Gaussian."""
        if len(self.roots) > MOST_ROOTS:
            return None
        spreads = [(_rounded(r.spread[0]), _rounded(r.spread[1]), r.shape) for r in self.roots]
        key = (self.key, tuple(spreads))
        if key not in _OF_ROOTS:
            places, weights = sample(len(self.roots))
            values = [
                mean + std * at(root.shape, s)
                for (mean, std, _), root, s in zip(spreads, self.roots, places, strict=True)
            ]
            found = np.asarray(self.function(*values), np.float64)
            if len(_OF_ROOTS) >= _MOST_KEPT:
                _OF_ROOTS.clear()
            finite = bool(np.all(np.isfinite(found)))
            slopes = np.ones_like(found) if self.slopes is None else self.slopes(*values)
            _OF_ROOTS[key] = shape_of(found, weights, slopes) if finite else None
        return _OF_ROOTS[key]


_MOST_KEPT = 512

_OF_ROOTS: dict[Any, Shape | None] = {}


def of_terms(terms: "tuple[Term, ...]") -> OfRoots | None:
    """The law of a sum of products over independent roots; None where it says nothing new."""
    roots = list({id(root): root for term in terms for root, _ in term.factors}.values())
    numbers = {id(root): n for n, root in enumerate(roots)}
    if not roots:
        return None
    table = tuple(
        (float(f"{t.coefficient:.6g}"), tuple((numbers[id(r)], f) for r, f in t.factors))
        for t in terms
    )
    if all(r.own_law is None for r in roots) and all(
        len(factors) <= 1 and all(f.name == "linear" for _, f in factors) for _, factors in table
    ):
        return None

    def function(*values: Array) -> Array:
        total = np.zeros_like(values[0])
        for coefficient, factors in table:
            product = np.full_like(total, coefficient)
            for number, activation in factors:
                product = product * np.asarray(activation.function(values[number]), np.float64)
            total = total + product
        return total

    return OfRoots(tuple(roots), ("terms", table), function)


@functools.lru_cache(maxsize=512)
def _of_function(
    function: Activation, mean: float, std: float, shape: Shape | None
) -> Shape | None:
    # Both halves of each cell: kinks are mostly in the middle of one.
    nodes = np.concatenate([NODES - STEP / 4, NODES + STEP / 4])
    places = mean + std * at(shape, nodes)
    values = np.asarray(function.function(places), np.float64)
    if not np.all(np.isfinite(values)) or std == 0:
        return None
    slopes = slopes_of(function.function, places, _SLOPE_STEP * std) ** 2
    return shape_of(values, normal_density(nodes), slopes * slopes_at(shape, nodes))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
