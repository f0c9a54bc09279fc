"""Merging, entry by entry: Add, Subtract, Multiply, Average, Maximum, Minimum, and `ops.where`.

Also `ops.power`, `hypot`, `arctan2` and other functions of two signals. For products that sum over
a dimension, see `attention.products`; for arithmetic with numbers, `scaling`.

Signals of different weights are independent. Signals that share weights or a tensor are one of:
functions of one signal; sums with common terms (`expansions`); twins, which one tower computed
from two inputs, related like two examples. In other cases the result is unknown.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit.families.activations import elementwise
from keras_varinit.keras_private import is_symbolic
from keras_varinit.maths.activated import law_of
from keras_varinit.maths.algebra import added, multiplied
from keras_varinit.maths.combining import FUNCTIONS, Joined, of_one_root, of_two, root_of
from keras_varinit.maths.common_factors import Common, common_of
from keras_varinit.maths.covariance import Moments, Term, columns, rows
from keras_varinit.maths.expansions import (
    expansion,
    moments_of,
    product_of,
    spread_share,
    sum_of,
    where_chosen,
)
from keras_varinit.maths.laws import Kind, Law, Mixed, of_terms
from keras_varinit.maths.together import factors_of
from keras_varinit.maths.windows import Array
from keras_varinit.signals.broadcasting import Aligned, align, are_alike, regrouped
from keras_varinit.signals.constants import constant_signal, values_of
from keras_varinit.signals.dependence import Dependence
from keras_varinit.signals.outcome import Gradient, Gradients, Outcome, Signal, Visit, unknown
from keras_varinit.signals.registry import (
    follows_channel_axes,
    layer_classes,
    role_rule,
    signal_rule,
)
from keras_varinit.signals.roles import Call, Elementwise, Merge, Role, Transparent


@role_rule(
    *layer_classes(
        "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Dot", "Bidirectional"
    ),
    *layer_classes("Attention", "AdditiveAttention"),
    "DotProductAttention",
    "Where",
)
def _merge_role(call: Call) -> Role:
    """A merge, also for `Bidirectional`, whose node in the graph joins the two directions."""
    return Merge() if len(call.node.inputs) > 1 else Transparent()


_LINEAR = ("Add", "Subtract", "Average")

# Signals that vary by less than this share count as independent of others.
_NEARLY_CONSTANT = 0.05


@follows_channel_axes
@signal_rule(
    *layer_classes("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract"),
    *("Arctan2", "DivideNoNan", "Fmax", "Fmin", "Hypot", "Logaddexp", "Logaddexp2", "Maximum"),
    *("Minimum", "Power", "Where"),
)
def merged(visit: Visit) -> Outcome:
    """A function of several signals, or of a signal and known numbers."""
    name = type(visit.operation).__name__
    if isinstance(visit.role, Elementwise):
        return elementwise(visit)
    arguments = arguments_of(visit)
    if name not in FUNCTIONS or any(a is None for a in arguments):
        return unknown(visit, "its effect on signals is not modelled")
    if not all(s.is_known() for s in visit.inputs):
        return unknown(visit)
    return joined(visit, name, arguments)


def arguments_of(visit: Visit) -> list[int | Array | None]:
    """The arguments of a call, each an input's number, an array of known values, or None."""
    recorded = visit.call.node.arguments
    if recorded is None:
        return list(range(len(visit.inputs)))
    numbers = itertools.count()
    operand_values: list[int | Array | None] = []
    call_values = [*recorded.args, *(recorded.kwargs[k] for k in sorted(recorded.kwargs))]
    for value in _flat(call_values):
        if is_symbolic(value):
            number = next(numbers)
            known = visit.values[number] if visit.values else None
            operand_values.append(number if known is None else known)
        else:
            operand_values.append(values_of(value))
    return operand_values


def _flat(values: Sequence[Any]) -> list[Any]:
    return [e for v in values for e in (v if isinstance(v, list | tuple) else [v])]


def joined(visit: Visit, name: str, arguments: Sequence[Any]) -> Outcome:
    """The function h named `name`, applied to signals and known numbers."""
    shape = visit.output_shape
    numbers = [a for a in arguments if isinstance(a, int)]
    target = max((visit.inputs[n] for n in numbers), key=lambda s: (len(s.axes), s.channels))
    by_layer = isinstance(visit.operation, keras.layers.Layer)
    aligned: list[Aligned] = []
    for argument in arguments:
        if isinstance(argument, int):
            before = visit.call.input_shapes[argument]
            one = align(visit.inputs[argument], before, shape, target, by_layer=by_layer)
            if one is None:
                return unknown(visit, "it joins signals of different layouts")
            aligned.append(one)
        else:
            signal = constant_signal(argument, shape, target)
            aligned.append(Aligned(signal, signal, 0))
    if len({a.signal.channels for a in aligned}) > 1:
        return unknown(visit, "it joins signals of an unknown number of channels")
    groups = regrouped([a.signal for a in aligned])
    dependence = Dependence(visit, arguments, aligned)
    results = [(n, _group(name, parts, dependence)) for n, parts in groups]
    if name == "Multiply":
        results = _with_common(results, aligned)
    if any(joint is None for _, joint in results):
        return unknown(visit, dependence.reason or _REASONS.get(name, "E h² does not exist"))
    joints: list[tuple[int, Joined]] = [(n, j) for n, j in results if j is not None]
    first = aligned[0].signal
    output = Signal(
        tuple((n, joint.moments) for n, joint in joints),
        target.channel_axis,
        first.other_axes,
        alike=are_alike(aligned, summed=name in _LINEAR),
    )

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        results: list[Gradient | None] = [None] * len(visit.inputs)
        if gradient is None:
            return results
        if gradient.in_step and dependence.joins_twins():
            # With shared weights, the gradients of the two towers are in phase.
            visit.note(f"{visit.operation.name}: gradients of a sum over twins are not known")
            gradient = gradient.scaled(math.nan)
        ratios = dependence.kept_together(name, groups, output, gradient.through)
        gradient = gradient.parting(visit.call.node.index)
        for place, argument in enumerate(arguments):
            if not isinstance(argument, int) or (name == "Where" and place == 0):
                continue
            back = _passed(gradient, joints, place)
            if ratios:
                parts = zip(back.parts, ratios, strict=True)
                moved = back.with_parts(tuple(g * r[place][0] for g, r in parts))
                through = ratios[0][place][1] if len(ratios) == 1 else None
                back = dataclasses.replace(moved, phases=back.phases, through=through)
            if name == "Multiply" and _is_gate(aligned[place]):
                back = back.scaled(gradient.radial)
            results[argument] = aligned[place].back(back, output)
        return results

    return Outcome((output,), pullback)


def _with_common(
    results: Sequence[tuple[int, Joined | None]], aligned: Sequence[Aligned]
) -> list[tuple[int, Joined | None]]:
    """Records a factor with a single channel as common to all channels of the product."""
    common: Common | None = None
    for one in aligned:
        moments = one.source.merged
        own = common_of(moments) if _is_gate(one) else moments.common
        common = own if common is None else common
    if common is None:
        return list(results)
    return [
        (n, j and dataclasses.replace(j, moments=dataclasses.replace(j.moments, common=common)))
        for n, j in results
    ]


def _is_gate(one: Aligned) -> bool:
    return one.source.channels == 1 and one.copies > 1


_REASONS = {
    name: "its denominator may come near 0, so that E h² does not exist"
    for name in ("Divide", "TrueDivide", "DivideNoNan")
}


def _passed(gradient: Gradient, joints: Sequence[tuple[int, Joined]], place: int) -> Gradient:
    """The gradient at the signal number `place`, by the channel groups of the result."""
    parts = tuple(
        g * joint.factors[place] for g, (_, joint) in zip(gradient.parts, joints, strict=True)
    )
    total = sum(n for n, _ in joints)
    kept = sum(n * joint.kept[place] for n, joint in joints) / total
    slope = sum(n * joint.slopes[place] for n, joint in joints) / total
    back = gradient.less_coherent(kept, kept).with_parts(parts)
    phases, in_step = gradient.times_phases(slope), gradient.in_step
    through = joints[0][1].function
    return dataclasses.replace(back, phases=phases, in_step=in_step, through=through)


def _group(name: str, parts: Sequence[Moments], dependence: Dependence) -> Joined | None:
    """The function for one group of channels; None if unknown."""
    roots = [root_of(m)[0] for m in parts]
    if all(root is roots[0] for root in roots[1:]):
        return of_one_root(name, parts)
    pairs = dependence.pairs()
    if pairs and all(dependence.are_twins(*pair) for pair in pairs):
        return _twins(name, parts, pairs)
    if name == "Where":
        return _by_terms(name, parts, dependence)
    if pairs and not all(_negligible(name, parts[i], parts[j]) for i, j in pairs):
        dependence.reason = "its inputs depend on each other"
        return _by_terms(name, parts, dependence)
    if name in _LINEAR:
        return _linear(name, parts)
    if name == "Multiply":
        return _product(parts)
    return _folded(name, parts)


def _negligible(name: str, first: Moments, second: Moments) -> bool:
    """Whether one of two signals varies so little that their dependence can be neglected."""
    if name in _LINEAR:
        one, two = first.spread[1], second.spread[1]
        return min(one, two) ** 2 <= _NEARLY_CONSTANT * max(one, two) ** 2
    return min(spread_share(first), spread_share(second)) <= _NEARLY_CONSTANT


def _signs(name: str, count: int) -> list[float]:
    if name == "Subtract":
        return [1.0, -1.0]
    return [1 / count if name == "Average" else 1.0] * count


def _linear(name: str, parts: Sequence[Moments]) -> Joined:
    signs = _signs(name, len(parts))
    result = parts[0]
    for each in parts[1:]:
        result = added(result, each, -1.0 if name == "Subtract" else 1.0)
    result = result.scaled(signs[0] ** 2) if name == "Average" else result.plain()
    terms = sum_of([(sign, expansion(m)) for sign, m in zip(signs, parts, strict=True)])
    result = dataclasses.replace(result, terms=terms, law=of_terms(terms))
    return Joined(result, tuple(s**2 for s in signs), (1.0,) * len(parts), tuple(signs))


def _product(parts: Sequence[Moments]) -> Joined:
    result, terms = parts[0], expansion(parts[0])
    for each in parts[1:]:
        result = multiplied(result, each)
        terms = product_of(terms, expansion(each))
    result = dataclasses.replace(result.plain(), terms=terms, law=of_terms(terms))
    return Joined(result, *_of_products(parts))


_Passed = tuple[tuple[float | Array, ...], tuple[float, ...], tuple[float, ...]]


def _of_products(parts: Sequence[Moments]) -> _Passed:
    """For each signal, the mean square of the product of the others, its coherence and mean."""
    factors: list[float | Array] = []
    kept, slopes = [], []
    for number in range(len(parts)):
        others = [m for place, m in enumerate(parts) if place != number]
        factors.append(functools.reduce(np.multiply, [m.second for m in others]))
        shares = (min(abs(m.pair_moment) / max(m.second_moment, 1e-300), 1.0) for m in others)
        kept.append(math.prod(shares))
        slopes.append(math.prod(m.average(m.mean) for m in others))
    return tuple(factors), tuple(kept), tuple(slopes)


def _folded(name: str, parts: Sequence[Moments]) -> Joined | None:
    """h(h(a, b), c), …: intermediate results count as Gaussian up to their skewness."""
    joint = of_two(name, parts[0], parts[1])
    for each in parts[2:]:
        following = joint and of_two(name, joint.moments, each)
        if joint is None or following is None:
            return None
        factors = [f * following.factors[0] for f in joint.factors]
        kept = [k * following.kept[0] for k in joint.kept]
        joint = Joined(
            following.moments,
            (*factors, following.factors[1]),
            (*kept, following.kept[1]),
            (0.0,) * (len(factors) + 1),
        )
    return joint


def _twins(name: str, parts: Sequence[Moments], pairs: Sequence[tuple[int, int]]) -> Joined | None:
    """The function of twins, whose joint moments are those of two examples."""
    if name not in _LINEAR:
        return of_two(name, parts[0], parts[1], twins=True) if len(parts) == 2 else None
    joint = _linear(name, parts)
    signs = _signs(name, len(parts))
    far = joint.moments.far
    for i, j in pairs:
        one, two = parts[i], parts[j]
        apart = rows(one.mean) * columns(two.mean) + columns(one.mean) * rows(two.mean)
        far = far + signs[i] * signs[j] * (one.far + two.far - apart)
    return dataclasses.replace(joint, moments=dataclasses.replace(joint.moments, far=far, terms=()))


def _by_terms(name: str, parts: Sequence[Moments], dependence: Dependence) -> Joined | None:
    """The function of signals with common parts, as a sum of products of independent roots."""
    expanded = [expansion(m) for m in parts]
    if name in _LINEAR:
        signs = _signs(name, len(parts))
        terms = sum_of(list(zip(signs, expanded, strict=True)))
        passed: _Passed = tuple(s**2 for s in signs), (1.0,) * len(parts), tuple(signs)
    elif name == "Multiply":
        terms = expanded[0]
        for each in expanded[1:]:
            terms = product_of(terms, each)
        passed = _of_products(parts)
        # Gradients of a factor with several roots are not known for each root separately.
        factors = None if _opened(terms, dependence) else factors_of(name, parts)
        passed = (tuple(factors or [math.nan] * len(parts)), *passed[1:])
        if factors is None:
            dependence.visit.note(
                f"{dependence.visit.operation.name}: gradients of a product of signals that depend "
                "on each other are not known"
            )
    elif name == "Where":
        mask, first, second = expanded
        left = sum_of([(1.0, [Term(1.0, ())]), (-1.0, mask)])
        products = product_of(mask, first), product_of(left, second)
        terms = sum_of([(1.0, products[0]), (1.0, products[1])]) if all(products) else ()
        passed = _of_choices(parts[0], parts[1:])
    else:
        return None
    apart = dependence.made_independent(terms)
    moments = moments_of(apart)
    if moments is None:
        dependence.reason = "its inputs depend on each other"
        return None
    law: Law | None = of_terms(apart)
    if name == "Where" and dependence.is_placed(parts):
        law = _law_by_place(parts)
    moments = dataclasses.replace(moments, terms=tuple(terms), law=law)
    return Joined(moments, *passed)


def _law_by_place(parts: Sequence[Moments]) -> Law | None:
    """The law of `where` with a known mask: a mixture of the two standardized signals."""
    mask, kinds = parts[0], []
    shares = mask.average(mask.mean), 1 - mask.average(mask.mean)
    for share, choice in zip(shares, parts[1:], strict=True):
        mean, std = choice.spread
        if share > 0 and std > 0:
            kinds.append(Kind(share, choice, 1 / std, -mean / std))
    return Mixed(tuple(kinds)) if kinds else None


def _opened(terms: Sequence[Term], dependence: Dependence) -> bool:
    """Whether terms must be rewritten to make them independent."""
    return tuple(dependence.made_independent(terms)) != tuple(terms)


def _of_choices(mask: Moments, choices: Sequence[Moments]) -> _Passed:
    """Gradient factors of `where`: 0 for the mask, the frequency of being chosen for the others.

    If mask and signal are functions of one root, the frequency is weighted by the squared slope.
    """
    chosen, sign = root_of(mask), 1.0
    factors: list[float | Array] = [0.0]
    slopes = [0.0]
    for choice in choices:
        root, function = root_of(choice)
        shares = np.clip(mask.mean, 0.0, 1.0)
        factor: float | Array = shares if sign > 0 else 1 - shares
        slope = mask.average(np.asarray(factor))
        own = law_of(root, function)
        if root is chosen[0] and own.squared_slope > 0:
            both = law_of(root, where_chosen(chosen[1], function, sign))
            factor = both.squared_slope / own.squared_slope
            slope = both.slope / own.slope if own.slope else 0.0
        factors.append(factor)
        slopes.append(slope)
        sign = -sign
    return tuple(factors), (1.0,) * 3, tuple(slopes)
