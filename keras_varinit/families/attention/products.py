"""Products of two signals: Dot, `ops.matmul`, `ops.einsum`, as in hand-written attention.

Products that sum over channels are logits; products of attention weights and values sum over the
keys. Other sums over positions are not modelled.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_varinit.families.attention.rows import RowGradient, Rows, RowSignal, with_rows
from keras_varinit.families.known_matrices import with_matrix
from keras_varinit.families.linear import labels_of, raw_kernels
from keras_varinit.maths.covariance import Moments, uniform
from keras_varinit.maths.patterns import everything
from keras_varinit.maths.tokens import Attention, of_products
from keras_varinit.maths.windows import Array, axes_of
from keras_varinit.signals.constants import operands
from keras_varinit.signals.layouts import (
    channel_axes,
    position_axes,
    reordered,
    signal_at,
    with_channel_axes,
)
from keras_varinit.signals.narrowness import shared_width
from keras_varinit.signals.outcome import Gradient, Gradients, Outcome, Signal, Visit, unknown
from keras_varinit.signals.registry import follows_channel_axes, signal_rule
from keras_varinit.signals.roles import Weights
from keras_varinit.typing import Layer

Labels = Sequence[str]


@follows_channel_axes
@signal_rule("Matmul", "Einsum", keras.layers.Dot)
def _product(visit: Visit) -> Outcome:
    """A contraction of two signals, or of a signal with a kernel or known numbers."""
    if isinstance(visit.role, Weights):
        return raw_kernels(visit)
    if len(visit.inputs) != 2 or any(v is not None for v in visit.values):
        if type(visit.operation).__name__ == "Matmul":
            return _with_known(visit)
        return unknown(visit, "a product with known numbers is not modelled")
    labels = _labels(visit)
    if labels is None:
        return unknown(visit, "which dimensions it sums over is not known")
    try:
        return Product(visit, *labels).outcome()
    except UnmodelledError as reason:
        return unknown(visit, str(reason))


def _with_known(visit: Visit) -> Outcome:
    """A matrix product with a matrix of known numbers."""
    sides = operands(visit)
    for number, values in enumerate(sides):
        other = sides[1 - number]
        if isinstance(values, np.ndarray) and isinstance(other, int):
            return with_matrix(visit, other, values, signal_first=number == 1)
    return unknown(visit, "the value of an operand is not known")


class UnmodelledError(Exception):
    """A product is not modelled; the message says why."""


def _labels(visit: Visit) -> tuple[list[str], list[str], list[str]] | None:
    """A label for each dimension of both operands and of the output, None if unknown."""
    first, second = (len(s) for s in visit.call.input_shapes)
    if isinstance(visit.operation, keras.layers.Dot):
        return _of_dot(visit.operation, first, second)
    if type(visit.operation).__name__ == "Einsum":
        return _of_einsum(visit.operation.subscripts, first, second)
    if min(first, second) < 3 or first != second:
        return None
    shared = [f"{n}" for n in range(first - 2)]
    return [*shared, "m", "k"], [*shared, "k", "n"], [*shared, "m", "n"]


def _of_dot(layer: Layer, first: int, second: int) -> tuple[list[str], list[str], list[str]] | None:
    axes = layer.axes
    one, two = (axes, axes) if isinstance(axes, int) else axes
    if layer.normalize:
        return None
    left = ["b", *(f"l{n}" for n in range(1, first))]
    right = ["b", *(f"r{n}" for n in range(1, second))]
    left[one % first] = right[two % second] = "k"
    output = [label for label in [*left, *right[1:]] if label != "k"]
    return left, right, output if len(output) > 1 else [*output, "one"]


def _of_einsum(
    equation: str, first: int, second: int
) -> tuple[list[str], list[str], list[str]] | None:
    if "->" not in equation or equation.count(",") != 1:
        return None
    inputs, _ = equation.split("->")
    left, right = (part.strip() for part in inputs.split(","))
    if "." in equation:
        hidden = [f"#{n}" for n in range(first - len(left.replace("...", "")))]
        if len(right.replace("...", "")) + ("." in right) * len(hidden) != second:
            return None
    one, two, output = labels_of(equation, first)
    repeats = any(len(set(each)) < len(each) for each in (one, two, output))
    return None if repeats else (one, two, output)


class Product:
    """A contraction of two signals.

    Args:
        visit: The call.
        left: A label for each dimension of the first operand.
        right: A label for each dimension of the second operand.
        output: A label for each dimension of the output.
    """

    def __init__(self, visit: Visit, left: Labels, right: Labels, output: Labels) -> None:
        self.visit, self.labels, self.output = visit, (left, right), output
        self.sizes: dict[str, int | None] = {"one": 1}
        for number, labels in enumerate(self.labels):
            for label, size in zip(labels, self._shape(number), strict=True):
                if self.sizes.setdefault(label, size) != size:
                    raise UnmodelledError("it repeats one of its operands")
        batch = output[0]
        self.summed = [x for x in left if x in right and x not in output]
        alone = [x for x in {*left, *right} if x not in output and x not in self.summed]
        if left[0] != batch or right[0] != batch or alone or not self.summed:
            raise UnmodelledError("it sums over the batch, or over one operand by itself")
        self.shared = [x for x in left[1:] if x in right and x in output]
        self.only = tuple(
            [x for x in mine if x not in other] for mine, other in ((left, right), (right, left))
        )

    def _shape(self, number: int) -> list[int | None]:
        """An operand's shape, with sizes that Keras has lost taken from its signal."""
        signal, shape = self.visit.inputs[number], list(self.visit.call.input_shapes[number])
        for place, axis in zip(position_axes(signal, len(shape)), signal.axes, strict=True):
            shape[place] = axis.size if shape[place] is None else shape[place]
        return shape

    def outcome(self) -> Outcome:
        """The outcome as a product of weights and values, or else of queries and keys."""
        for number in (0, 1):
            signal = self.visit.inputs[number]
            if isinstance(signal, RowSignal) and signal.rows and signal.rows.are_weights:
                rank = len(self.labels[number])
                keys = [self.labels[number][a % rank] for a in signal.rows.key_axes]
                if sorted(keys) == sorted(self.summed):
                    return Mixing(self, number, signal).outcome()
        return _Logits(self).outcome()

    def channels_of(self, number: int) -> set[str]:
        """The labels of an operand's channels."""
        labels, signal = self.labels[number], self.visit.inputs[number]
        return {labels[a] for a in channel_axes(signal, len(labels))}

    def arranged(self, number: int, channels: set[str], order: Labels) -> Moments:
        """An operand's moments with the given channels and order of positions."""
        labels, shape = self.labels[number], self.visit.call.input_shapes[number]
        places = [a for a, label in enumerate(labels) if label in channels]
        signal = with_channel_axes(self.visit.inputs[number], shape, places)
        here = [labels[a] for a in position_axes(signal, len(labels))]
        return reordered(signal.merged, [here.index(label) for label in order])

    def back(self, number: int, second: Array, coherence: float, order: Labels) -> Gradient:
        """The gradient of an operand; `second` is E g² by positions in the given order."""
        signal, labels = self.visit.inputs[number], self.labels[number]
        here = [labels[a] for a in position_axes(signal, len(labels))]
        if sorted(here) == sorted(order):
            moved = second.transpose([list(order).index(label) for label in here])
        else:
            moved = np.full(signal.parts[0][1].mean.shape, float(np.mean(second)))
        return Gradient((moved,) * len(signal.parts), coherence)

    def count(self, labels: Sequence[str]) -> int:
        """The product of the sizes of some dimensions."""
        return math.prod(self.sizes[label] or 1 for label in labels)

    def places(self, labels: Sequence[str]) -> tuple[int, ...]:
        """The dimensions of labels in the output, counted from the right."""
        return tuple(self.output.index(x) - len(self.output) for x in labels)

    def signal(self, parts: Moments, order: Labels) -> Signal:
        """The output's signal from moments by positions in the given order."""
        here = [x for x in self.output[1:] if x in order]
        moments = reordered(parts, [list(order).index(x) for x in here])
        channels = [x for x in self.output[1:] if x not in order]
        places = [self.output.index(x) for x in channels]
        return signal_at([(self.count(channels), moments)], places, len(self.output))


class _Logits:
    """Logits Σ q·k over the channels of two signals from different kernels."""

    def __init__(self, product: Product) -> None:
        self.product = product
        visit, summed, shared = product.visit, set(product.summed), product.shared
        # The keys are the operand whose positions come last in the output.
        ends = [max((product.output.index(x) for x in each), default=0) for each in product.only]
        self.numbers = (1, 0) if ends[0] > ends[1] else (0, 1)
        both = [product.channels_of(n) for n in self.numbers]
        only = [product.only[n] for n in self.numbers]
        if not all(summed <= each for each in both):
            raise UnmodelledError("it sums over positions")
        heads = [x for x in shared if x in both[0] | both[1]]
        self.blocks = [x for x in shared if x not in heads]
        self.extra = tuple([x for x in only[n] if x in both[n]] for n in (0, 1))
        self.tokens = tuple([x for x in only[n] if x not in both[n]] for n in (0, 1))
        channels = [summed | {*heads, *self.extra[n]} for n in (0, 1)]
        self.orders = tuple([*self.blocks, *self.tokens[n]] for n in (0, 1))
        if any(visit.inputs[n].merged.common is not None for n in (0, 1)):
            raise UnmodelledError("its operands have a factor in common that varies")
        self.parts = tuple(
            product.arranged(number, channels[n], self.orders[n])
            for n, number in enumerate(self.numbers)
        )
        self.size = product.count(product.summed)
        self.channels = [*heads, *self.extra[0], *self.extra[1]]
        self.are_twins = False
        if visit.reaches and visit.reaches[0] & visit.reaches[1]:
            self.are_twins = visit.lineages[0].is_twin_of(visit.lineages[1])
            if not self.are_twins or any(self.orders):
                raise UnmodelledError("its operands depend on each other")

    def outcome(self) -> Outcome:
        """The logits, with their rows if both operands have positions."""
        product, (query, key) = self.product, self.parts
        positions = [x for x in product.output[1:] if x not in self.channels]
        has_channels = len(positions) < len(product.output) - 1
        if not has_channels:
            positions = positions[:-1]
        axes = axes_of(tuple(product.sizes[x] for x in positions))
        mean = math.prod(m.average(m.mean) for m in self.parts)
        second = query.second_moment * key.second_moment
        # What has no positions is the same for all those of an example.
        pair = math.prod(
            m.second_moment if others and not own else m.pair_moment
            for m, own, others in zip(self.parts, self.orders, self.orders[::-1], strict=True)
        )
        if self.are_twins:
            # Two examples u, v of one kernel: E uv = E u u', and E u²v² as for a Gaussian pair.
            mean = query.pair_moment
            second, pair = second + 2 * mean**2, mean**2
        common = self.size * (self.size - 1) * mean**2
        moments = uniform(
            axes, self.size * mean, self.size * second + common, self.size * pair + common
        )
        output = product.signal(moments, positions)
        sizes = [product.sizes[x] for side in self.orders for x in side]
        if self.tokens[0] and self.tokens[1] and None not in sizes:
            pattern = everything(*(product.count(side) for side in self.tokens))
            rows = Rows(
                query,
                key,
                pattern,
                product.places(self.tokens[0]),
                product.places(self.tokens[1]),
                product.places(self.blocks),
                size=self.size,
                spread=self.size,
                source=product.visit.sources[self.numbers[1]] if product.visit.sources else None,
            )
            output = with_rows(output, rows)
        return Outcome((output,), lambda gradients: self._pullback(gradients, output))

    def _pullback(self, gradients: Gradients, output: Signal) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return [None, None]
        passed: list[Gradient | None] = [None, None]
        names = ("query", "key")
        for number, name in enumerate(names):
            own, other = self.parts[number], self.parts[1 - number]
            if isinstance(gradient, RowGradient) and gradient.sources is not None:
                second, coherence = gradient.sources[name]
            else:
                count = self.product.count(self.tokens[1 - number])
                # Σ_p x_p g_p: what positions have in common adds up where gradients agree.
                rho, alike = gradient.coherence, (count - 1) * other.pair_moment
                each = other.second_moment + rho * alike
                total = gradient.second_moment(output) * count * each
                coherence = rho * (other.second_moment + alike) / each if each > 0 else 0.0
                second = np.full(own.mean.shape, total)
                # How much softmax removes of what all keys have in common is unknown here.
                if isinstance(output, RowSignal) and other.pair_moment > 0.1 * other.second_moment:
                    second = np.full(own.mean.shape, math.nan)
            second = second * self.product.count(self.extra[1 - number])
            operand = self.numbers[number]
            passed[operand] = self.product.back(operand, second, coherence, self.orders[number])
        return passed


class Mixing:
    """Attention weights times values."""

    def __init__(self, product: Product, number: int, weights: RowSignal) -> None:
        self.product, self.number, self.weights = product, number, weights
        if weights.rows is None:
            raise UnmodelledError("its weights are not known row by row")
        rows = self.rows = weights.rows
        labels = product.labels[number]
        rank = len(labels)
        self.blocks, self.queries, self.keys = (
            [labels[a % rank] for a in axes]
            for axes in (rows.block_axes, rows.row_axes, rows.key_axes)
        )
        value = 1 - number
        if self.keys != [x for x in product.labels[value] if x in self.keys]:
            raise UnmodelledError("its keys are in another order")
        positions = [*self.blocks, *self.keys]
        self.channels = {x for x in product.labels[value][1:] if x not in positions}
        if product.channels_of(value) & set(positions):
            raise UnmodelledError("it sums over channels of the values")
        self.value_order = positions
        value_moments = product.arranged(value, self.channels, positions)
        own = [x for x in product.only[value] if x not in positions]
        shared_heads = [x for x in product.shared if x not in positions]
        self.repeats = product.count(
            [x for x in product.only[number] if x not in [*self.queries, *shared_heads]]
        )
        attended = range(len(self.blocks), len(rows.query.axes))
        self.attention = Attention(
            rows.query,
            rows.key,
            value_moments,
            rows.pattern,
            of_products(rows.scale, rows.size, rows.spread),
            product.count(own),
            list(attended) if self.blocks else None,
            rows.kept,
            product.count(own) if self._depends_on_weights() else self._shared_width(),
        )

    def _depends_on_weights(self) -> bool:
        """Whether values and weights depend on each other, as if the values are the keys."""
        reaches = self.product.visit.reaches
        return bool(reaches and reaches[0] & reaches[1])

    def _shared_width(self) -> float:
        sources = self.product.visit.sources
        return shared_width(self.rows.source, sources[1 - self.number]) if sources else math.inf

    def outcome(self) -> Outcome:
        """The mixed values; the weights' gradient carries those of queries and keys."""
        order = [*self.blocks, *self.queries]
        output = self.product.signal(self.attention.mixed, order)
        return Outcome((output,), lambda gradients: self._pullback(gradients, output, order))

    def _pullback(self, gradients: Gradients, output: Signal, order: Labels) -> Gradients:
        gradient = gradients[0]
        if gradient is None:
            return [None, None]
        here = [x for x in self.product.output[1:] if x in order]
        g = gradient.parts[0].transpose([here.index(x) for x in order])
        if g.shape != self.attention.mixed.mean.shape:
            g = np.full(self.attention.mixed.mean.shape, gradient.second_moment(output))
        by_operand = self.attention.backward(g, gradient.coherence)
        second, coherence = by_operand["value"]
        value = self.product.back(
            1 - self.number, second * self.repeats, coherence, self.value_order
        )
        logits = float(np.mean(by_operand["logits"][0]))
        weights = RowGradient(
            tuple(np.full_like(m.mean, logits) for _, m in self.weights.parts),
            by_operand["logits"][1],
            sources={n: by_operand[n] for n in ("query", "key")},
            centred=True,
        )
        return [weights, value] if self.number == 0 else [value, weights]
