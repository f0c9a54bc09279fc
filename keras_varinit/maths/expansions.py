"""Signals as sums of products of independent roots, for merging a signal with itself.

x + f(x) + x is 2x + f(x), and a highway's t·h + (1 - t)·x merges functions of one gate. For
y = Σ c_i Π_r f_ir(r) over independent roots r,

    E y_p y_q = Σ_ij c_i c_j Π_r E f_ir(r_p) f_jr(r_q),

in which every factor is known: E f f' from the law of f, and E f g' by polarization, from those of
f + g, f and g.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from keras_varinit.maths.activated import IDENTITY, activated
from keras_varinit.maths.algebra import added, multiplied
from keras_varinit.maths.covariance import (
    Moments,
    Term,
    columns,
    near_pairs,
    own_classes,
    rows,
    widen,
)
from keras_varinit.maths.laws import Kind, Mixed
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.windows import Array, Integers

_MOST_TERMS = 64

_MOST_FACTORS = 4

_PROBES = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])


def expansion(moments: Moments) -> tuple[Term, ...]:
    """A signal as one term: a function of its root."""
    if moments.pre is None or moments.function is None:
        return (Term(1.0, ((moments, IDENTITY),)),)
    return (Term(1.0, ((moments.pre, moments.function),)),)


def independent(
    terms: Sequence[Term], reach_of: Callable[[Moments], int | None]
) -> tuple[Term, ...]:
    """The same sum over roots that do not depend on each other; empty if there is none.

    Of two dependent roots, the one that depends on more is replaced by its own `terms`.

    Args:
        terms: The sum.
        reach_of: Bit mask of what a root depends on; None if unknown.
    """
    while terms:
        roots = roots_of(terms)
        reaches = {key: reach_of(root) for key, root in roots.items()}
        known = {key: reach for key, reach in reaches.items() if reach is not None}
        if len(known) < len(reaches):
            return ()
        joint = [
            key
            for one, two in itertools.combinations(known, 2)
            if known[one] & known[two]
            for key in (one, two)
        ]
        if not joint:
            return tuple(terms)
        sums = [key for key in dict.fromkeys(joint) if roots[key].terms]
        if not sums:
            return ()
        terms = _without(terms, max(sums, key=lambda key: known[key].bit_count()))
    return ()


def _without(terms: Sequence[Term], key: int) -> tuple[Term, ...]:
    """Terms with one root replaced by its own `terms`; empty if that is impossible."""
    parts: list[tuple[float, Sequence[Term]]] = []
    for term in terms:
        inside = [(root, function) for root, function in term.factors if id(root) == key]
        if not inside:
            parts.append((1.0, [term]))
            continue
        ((root, function),) = inside
        line = _as_line(function)
        if line is None:
            return ()
        rest = Term(term.coefficient, tuple(f for f in term.factors if id(f[0]) != key))
        opened = sum_of([(line[0], [Term(1.0, ())]), (line[1], root.terms)])
        product = product_of([rest], opened)
        if not product:
            return ()
        parts.append((1.0, product))
    return sum_of(parts)


@functools.lru_cache(maxsize=256)
def _as_line(function: Activation) -> tuple[float, float] | None:
    """(a, b) if the function is a + b·s, else None."""
    values = np.asarray(function.function(_PROBES), np.float64)
    constant, slope = float(values[2]), float(values[4] - values[2]) / 2
    straight = np.allclose(values, constant + slope * _PROBES, rtol=1e-5, atol=1e-6)
    return (constant, slope) if straight else None


def roots_of(terms: Iterable[Term]) -> dict[int, Moments]:
    """The root signals of terms, by `id`."""
    return {id(root): root for term in terms for root, _ in term.factors}


def sum_of(parts: Sequence[tuple[float, Sequence[Term]]]) -> tuple[Term, ...]:
    """Σ c·terms with like terms collected; empty for more than `_MOST_TERMS`."""
    total: dict[tuple[tuple[int, Activation], ...], Term] = {}
    for factor, terms in parts:
        for term in terms:
            key = tuple((id(root), function) for root, function in term.factors)
            before = total[key].coefficient if key in total else 0.0
            total[key] = Term(before + factor * term.coefficient, term.factors)
    terms = tuple(t for t in total.values() if t.coefficient)
    return terms if len(terms) <= _MOST_TERMS else ()


def product_of(first: Sequence[Term], second: Sequence[Term]) -> tuple[Term, ...]:
    """The expanded product; empty for too many terms or factors."""
    if len(first) * len(second) > _MOST_TERMS:
        return ()
    products = []
    for one in first:
        for two in second:
            factors = {id(root): (root, function) for root, function in one.factors}
            for root, function in two.factors:
                if id(root) in factors:
                    function = _times(factors[id(root)][1], function)
                factors[id(root)] = (root, function)
            if len(factors) > _MOST_FACTORS:
                return ()
            ordered = tuple(factors[key] for key in sorted(factors))
            products.append(Term(one.coefficient * two.coefficient, ordered))
    return sum_of([(1.0, products)])


def where_chosen(mask: Activation, function: Activation, sign: float) -> Activation:
    """The function where the mask is 1 (0 if `sign` is negative), else 0."""
    if sign > 0:
        return _times(mask, function)
    inverse = Activation(f"not {mask.name}", lambda s: 1 - mask.function(s), ("not", mask))
    return _times(inverse, function)


def _times(first: Activation, second: Activation) -> Activation:
    return _joined("times", np.multiply, first, second)


def _plus(first: Activation, second: Activation) -> Activation:
    return _joined("plus", np.add, first, second)


def _joined(
    word: str, join: Callable[[Array, Array], Array], first: Activation, second: Activation
) -> Activation:
    def function(s: Array) -> Array:
        return np.asarray(join(first.function(s), second.function(s)), np.float64)

    return Activation(f"{first.name} {word} {second.name}", function, (word, first, second))


def moments_of(terms: Sequence[Term]) -> Moments | None:
    """Moments of a sum of terms over independent roots; None for a constant."""
    constant = sum(t.coefficient for t in terms if not t.factors)
    groups = _connected([t for t in terms if t.factors])
    if not groups:
        return None
    result = functools.reduce(added, [_group(group) for group in groups])
    if constant:
        result = result.shifted((constant, constant**2))
    return result


def _connected(terms: Sequence[Term]) -> list[list[Term]]:
    """Groups of terms; different groups share no root."""
    groups: list[tuple[set[int], list[Term]]] = []
    for term in terms:
        own, members = set(roots_of([term])), [term]
        apart = []
        for roots, others in groups:
            if roots & own:
                own, members = own | roots, others + members
            else:
                apart.append((roots, others))
        groups = [*apart, (own, members)]
    return [members for _, members in groups]


def _group(terms: Sequence[Term]) -> Moments:
    if len(terms) == 1:
        (term,) = terms
        factors = [activated(root, function) for root, function in term.factors]
        return times(functools.reduce(multiplied, factors), term.coefficient)
    return _Pairs(terms).moments()


def times(moments: Moments, factor: float) -> Moments:
    """A signal times a number of either sign."""
    if factor == 1.0:
        return moments.plain()
    result = moments.scaled(factor**2)
    if factor > 0:
        return result
    law = Mixed((Kind(1.0, moments, factor),)) if moments.own_law else None
    return dataclasses.replace(result, mean=-result.mean, third=-result.third, law=law)


class _Pairs:
    """E y_p y_q of a sum of terms that share roots, by pairs of terms."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = terms
        self.roots = roots_of(terms)
        everything = list(self.roots.values())
        self.axes = everything[0].axes
        self.radius = tuple(max(r) for r in zip(*(m.radius for m in everything), strict=True))
        self.widened = {key: widen(root, self.radius) for key, root in self.roots.items()}
        self.squared: dict[tuple[int, Activation, Activation], tuple[Array, Array]] = {}

    def moments(self) -> Moments:
        mean = sum(t.coefficient * self._mean(t) for t in self.terms)
        far, near = np.zeros(()), np.zeros(())
        for one in self.terms:
            for two in self.terms:
                weight = one.coefficient * two.coefficient
                pair_far, pair_near = self._pair(one, two)
                far, near = far + weight * pair_far, near + weight * pair_near
        example = next(iter(self.widened.values()))
        inside = near_pairs(example)[2]
        plain = Moments(self.axes, np.asarray(mean), np.asarray(far), np.asarray(near), self.radius)
        excess = np.where(inside, near - near_pairs(plain)[0], 0.0)
        return Moments(self.axes, plain.mean, plain.far, excess, self.radius)

    def _mean(self, term: Term) -> Array:
        product = np.ones([a.count for a in self.axes])
        for root, function in term.factors:
            product = product * activated(root, function).mean
        return product

    def _pair(self, one: Term, two: Term) -> tuple[Array, Array]:
        """E of the product of two terms at far and at near pairs of positions."""
        first = {id(root): function for root, function in one.factors}
        second = {id(root): function for root, function in two.factors}
        far, near = np.ones(()), np.ones(())
        for key in {**first, **second}:
            cross = self._cross(key, first.get(key), second.get(key))
            far, near = far * cross[0], near * cross[1]
        return far, near

    def _cross(
        self, key: int, first: Activation | None, second: Activation | None
    ) -> tuple[Array, Array]:
        """E f(r_p) g(r_q), averaged over both orders; None stands for the function 1."""
        if first is None or second is None:
            return self._alone(self.widened[key], first or second or IDENTITY)
        if first == second:
            return self._squared(key, first)
        whole = self._squared(key, _plus(first, second))
        parts = self._squared(key, first), self._squared(key, second)
        far = (whole[0] - parts[0][0] - parts[1][0]) / 2
        return far, (whole[1] - parts[0][1] - parts[1][1]) / 2

    def _squared(self, key: int, function: Activation) -> tuple[Array, Array]:
        place = (key, function, function)
        if place not in self.squared:
            law = activated(self.widened[key], function)
            self.squared[place] = law.far, near_pairs(law)[0] + law.excess
        return self.squared[place]

    def _alone(self, root: Moments, function: Activation) -> tuple[Array, Array]:
        mean = activated(root, function).mean
        others: Integers = near_pairs(root)[1]
        flat = mean.ravel()
        return (rows(mean) + columns(mean)) / 2, (flat[own_classes(root)] + flat[others]) / 2


def spread_share(moments: Moments) -> float:
    """The variance of a signal over its squared mean."""
    mean, std = moments.spread
    return (std / mean) ** 2 if mean else math.inf
