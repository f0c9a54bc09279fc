"""Standardized distributions ("laws") of a signal's entries where these are not Gaussian.

A law has mean 0 and variance 1; `Moments` hold the mean and standard deviation. Scaling or shifting
a signal therefore keeps its law. Laws are computed on first use.
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

_SLOPE_STEP = 1e-3  # of finite differences, in standard deviations


class Law(Protocol):
    """The standardized law of a signal's entries."""

    @property
    def shape(self) -> Shape | None:
        """The transform T of mean 0 and variance 1; None for a Gaussian."""


@dataclasses.dataclass(frozen=True, eq=False)
class OfFunction:
    """The law of f(u), where u is the signal `root` and f is `function`."""

    root: "Moments"
    function: Activation

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The law of f(u); None where f(u) is constant or not finite."""
        mean, std = self.root.spread
        return _of_function(self.function, _rounded(mean), _rounded(std), self.root.shape)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One component of a mixture: scale·z + shift of the signal `source` z.

    `share` is its share of the entries, `factor` the weight of its squared slopes in gradients.
    """

    share: float
    source: "Moments"
    scale: float = 1.0
    shift: float = 0.0
    factor: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Mixed:
    """A mixture of several kinds of entries.

    With `by_channel` all entries of a channel are of one kind; otherwise kinds vary within it.
    """

    kinds: tuple[Kind, ...]
    by_channel: bool = False

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The law of the mixture."""
        components: list[EntryKind] = []
        for kind in self.kinds:
            mean, std = kind.source.spread
            scale, shift = kind.scale * std, kind.scale * mean + kind.shift
            components.append((kind.share, kind.source.shape, scale, shift, kind.factor))
        shape, scale = components[0][1:3]
        if len(components) == 1 and scale > 0:
            return shape
        if all(c[1] is None and c[2:4] == components[0][2:4] for c in components):
            return None
        return mixed(components)


def kinds_of(moments: "Moments") -> tuple[Kind, ...]:
    """The kinds of channels in a signal; empty where all channels are alike."""
    law = moments.own_law
    several = isinstance(law, Mixed) and law.by_channel and len(law.kinds) > 1
    return law.kinds if isinstance(law, Mixed) and several else ()


@dataclasses.dataclass(frozen=True, eq=False)
class OfRoots:
    """The law of a function of independent signals.

    Equal `key`s mean equal functions. `slopes` maps the same values to the squared slope that
    gradients through the function meet; None stands for 1.
    """

    roots: "tuple[Moments, ...]"
    key: Any
    function: Callable[..., Array]
    slopes: Callable[..., Array] | None = None

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The law of the function; None (Gaussian) for more than `MOST_ROOTS` signals."""
        if len(self.roots) > MOST_ROOTS:
            return None
        spreads = [(_rounded(r.spread[0]), _rounded(r.spread[1]), r.shape) for r in self.roots]
        key = (self.key, tuple(spreads))
        if key not in _CACHE:
            places, weights = sample(len(self.roots))
            values = [
                mean + std * at(root.shape, s)
                for (mean, std, _), root, s in zip(spreads, self.roots, places, strict=True)
            ]
            outputs = np.asarray(self.function(*values), np.float64)
            if len(_CACHE) >= _CACHE_SIZE:
                _CACHE.clear()
            finite = bool(np.all(np.isfinite(outputs)))
            slopes = np.ones_like(outputs) if self.slopes is None else self.slopes(*values)
            _CACHE[key] = shape_of(outputs, weights, slopes) if finite else None
        return _CACHE[key]


_CACHE_SIZE = 512

_CACHE: dict[Any, Shape | None] = {}


def of_terms(terms: "tuple[Term, ...]") -> OfRoots | None:
    """The law of a sum of products over independent roots; None for a constant or a Gaussian."""
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
    # Two points per cell, since most kinks lie in the middle of one.
    nodes = np.concatenate([NODES - STEP / 4, NODES + STEP / 4])
    places = mean + std * at(shape, nodes)
    values = np.asarray(function.function(places), np.float64)
    if not np.all(np.isfinite(values)) or std == 0:
        return None
    slopes = slopes_of(function.function, places, _SLOPE_STEP * std) ** 2
    return shape_of(values, normal_density(nodes), slopes * slopes_at(shape, nodes))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
