"""What rules take and return: signals, the gradients that come back, and visits of the engine."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_varinit.keras_private import Shape
from keras_varinit.maths.algebra import combined
from keras_varinit.maths.covariance import Moments, position_weights, uniform
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.steepness import softened
from keras_varinit.maths.windows import Array, Axes, axes_of
from keras_varinit.signals.roles import Call, Role
from keras_varinit.tracing.masks import Masks


@dataclasses.dataclass(frozen=True)
class Signal:
    """Moments of a tensor, by groups of channels: (number of channels, moments).

    `channel_axis` is the tensor's dimension that holds the channels, and `other_axes` are more of
    them, counted from the right, such as the heads of attention; the others but the batch are
    positions.
    """

    parts: tuple[tuple[int, Moments], ...]
    channel_axis: int = -1
    other_axes: tuple[int, ...] = ()

    @property
    def axes(self) -> Axes:
        """The axes of its positions."""
        return self.parts[0][1].axes

    @property
    def channels(self) -> int:
        """Number of channels."""
        return sum(n for n, _ in self.parts)

    @property
    def merged(self) -> Moments:
        """Averages over all channels."""
        return combined([m for _, m in self.parts], [n for n, _ in self.parts])

    @property
    def second_moment(self) -> float:
        """E z² over all entries."""
        return sum(n * m.second_moment for n, m in self.parts) / self.channels

    def is_known(self) -> bool:
        """Whether the moments are numbers."""
        return all(m.is_known() for _, m in self.parts)

    def each(self, function: Callable[[Moments], Moments]) -> "Signal":
        """A function of each group; equal groups stay the same object."""
        done: dict[int, Moments] = {}
        parts = []
        for n, moments in self.parts:
            if id(moments) not in done:
                done[id(moments)] = function(moments)
            parts.append((n, done[id(moments)]))
        return dataclasses.replace(self, parts=tuple(parts))

    def scaled(self, factor: float) -> "Signal":
        """Second moments times `factor`."""
        return self.each(lambda m: m.scaled(factor))


@dataclasses.dataclass(frozen=True)
class Gradient:
    """E (dL/dz)² by group of channels and class of position.

    `coherence` is the correlation of the gradients at two far positions of a channel, and `local`
    what adjacent positions have beyond it, as a share of what is missing to 1. `through` is the
    activation that the gradient has just come back through. `phases` are what it owes to gradients
    where paths part, as amplitudes along orthonormal ones: (number, amplitude). `in_step`: all
    channels have one gradient, for their sum was taken. `here` is a factor on the second moment at
    the kernel in front that does not go on through it: channels of small kernels were scaled up.
    `radial` is a factor for what goes to a factor common to all channels, of which a normalization
    leaves next to nothing.
    `bend` and `own` are those of `curvature`: how the gradient depends on the pre-activations, and
    what of it goes with the signal itself.
    """

    parts: tuple[Array, ...]
    coherence: float = 0.0
    local: float = 0.0
    through: Activation | None = None
    phases: tuple[tuple[int, float], ...] = ()
    in_step: bool = False
    here: float = 1.0
    radial: float = 1.0
    bend: Any = None
    own: Any = None

    def with_parts(self, parts: tuple[Array, ...]) -> "Gradient":
        """Other second moments, as coherent."""
        return Gradient(parts, self.coherence, self.local)

    @property
    def adjacent(self) -> float:
        """The correlation of the gradients at adjacent positions."""
        return self.coherence + (1 - self.coherence) * self.local

    def less_coherent(self, far: float, adjacent: float) -> "Gradient":
        """The correlations of far and of adjacent pairs times a factor each."""
        coherence = self.coherence * far
        left = 1 - coherence
        local = (self.adjacent * adjacent - coherence) / left if left > 1e-9 else 0.0
        return Gradient(self.parts, coherence, max(local, 0.0))

    def second_moment(self, signal: Signal) -> float:
        """E (dL/dz)² over all entries of the signal."""
        weights = position_weights(signal.axes)
        total = sum(
            n * float((weights * g).sum())
            for (n, _), g in zip(signal.parts, self.parts, strict=True)
        )
        return total / signal.channels

    def scaled(self, factor: float) -> "Gradient":
        """Second moments times `factor`."""
        return self.with_parts(tuple(g * factor for g in self.parts))

    @property
    def power(self) -> float:
        """E (dL/dz)² over groups and classes alike."""
        return float(np.mean([np.mean(g) for g in self.parts]))

    def parting(self, number: int) -> "Gradient":
        """Where paths part: what no earlier parting explains is a phase of its own."""
        left = self.power - sum(amplitude**2 for _, amplitude in self.phases)
        if not left > 1e-9 * self.power:
            return self
        return dataclasses.replace(self, phases=(*self.phases, (number, math.sqrt(left))))

    def in_phase(self, other: "Gradient") -> float:
        """E of the product of two gradients."""
        amplitudes = dict(other.phases)
        return sum(amplitude * amplitudes.get(number, 0.0) for number, amplitude in self.phases)

    def times_phases(self, factor: float) -> tuple[tuple[int, float], ...]:
        """The phases after a factor of that mean."""
        return tuple((n, a * factor) for n, a in self.phases) if factor else ()


Gradients = Sequence[Gradient | None]

Pullback = Callable[[Gradients], Gradients]


def added(first: Gradient | None, second: Gradient) -> Gradient:
    """Gradients of two uses of a tensor: independent but for paths that parted further on."""
    if first is None:
        return second
    one, two = first.power, second.power
    weight = one + two
    together = max(1 + 2 * first.in_phase(second) / weight, 0.0) if weight else 1.0
    parts = tuple((a + b) * together for a, b in zip(first.parts, second.parts, strict=True))
    coherence = (one * first.coherence + two * second.coherence) / weight if weight else 0.0
    local = (one * first.local + two * second.local) / weight if weight else 0.0
    phases = dict(first.phases)
    for number, amplitude in second.phases:
        phases[number] = phases.get(number, 0.0) + amplitude
    through = first.through
    if through != second.through:
        shares = (one / weight, two / weight) if weight else (0.0, 0.0)
        through = softened(first.through, shares[0]) if second.through is None else None
        if first.through is None:
            through = softened(second.through, shares[1])
    return Gradient(parts, coherence, local, through, tuple(phases.items()))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a rule returns: the outputs, and how gradients come back to the inputs."""

    outputs: tuple[Signal, ...]
    pullback: Pullback


@dataclasses.dataclass(frozen=True)
class Lineage:
    """How a tensor came about: equal `key`s by the same operations and weights.

    `sources` are the model's inputs that it was made of, as the bits of an integer.
    """

    key: int
    sources: int

    def is_twin_of(self, other: "Lineage") -> bool:
        """Whether the same operations made both, of different inputs."""
        return self.key == other.key and not self.sources & other.sources


@dataclasses.dataclass(frozen=True)
class Visit:
    """One call as the engine's rules see it.

    `variance_of(kernel, gain)` is the variance of an entry of a kernel whose output has the second
    moment gain·variance; `forward` and `backward` record what a kernel's output carries. `values`
    holds the numbers that some inputs are, `at_output` whether all outputs are the model's.
    `masks` knows the tensors that no weight has touched. Inputs whose `reaches` share a bit depend
    on each other; `reach_of` says it of other signals; what shares a bit of `ties` alone is made of
    parts of one softmax. `narrowness` and `sources`: see the module `narrowness`. `renewed` gives
    the correlation that is supposed where only the scale is known.
    """

    call: Call
    role: Role
    inputs: tuple[Signal, ...]
    variance_of: Callable[[Any, float], float]
    forward: Callable[[Any, float], None]
    backward: Callable[[Any, float], None]
    note: Callable[[str], None]
    values: tuple[Array | None, ...] = ()
    at_output: bool = False
    masks: Masks | None = None
    lineages: tuple[Lineage, ...] = ()
    reaches: tuple[int, ...] = ()
    reach_of: Callable[[Moments], int | None] = lambda _: None
    narrowness: tuple[float, ...] = ()
    renewed: Callable[[], float] = lambda: 0.0
    sources: tuple[tuple[int, float] | None, ...] = ()
    ties: int = 0

    @property
    def operation(self) -> Any:
        """The layer or operation that is called."""
        return self.call.operation

    @property
    def output_shape(self) -> Shape:
        """Shape of the first output."""
        return self.call.output_shapes[0]


def alike(shape: Shape, channel_axis: int, mean: float, second: float, pair: float) -> Signal:
    """A signal of that shape with equal moments everywhere."""
    if not 1 - len(shape) <= channel_axis < len(shape):
        channel_axis = -1
    axes, channels = layout(shape, channel_axis)
    return Signal(((channels, uniform(axes, mean, second, pair)),), channel_axis)


def layout(shape: Shape, channel_axis: int) -> tuple[Axes, int]:
    """The axes of the positions and the number of channels of a tensor."""
    if len(shape) < 2:
        return (), 1
    inner = list(shape[1:])
    place = channel_axis - 1 if channel_axis > 0 else channel_axis
    channels = inner.pop(place)
    return axes_of(tuple(inner)), channels or 1


def unknown(visit: Visit, reason: str = "") -> Outcome:
    """Outputs of which nothing is known, and gradients of which nothing is known either.

    `reason` is noted where what comes in was known.
    """
    if reason and (not visit.inputs or any(s.is_known() for s in visit.inputs)):
        kind = type(visit.operation).__name__
        visit.note(
            f"{visit.operation.name} ({kind}): {reason}; the scale of its output is not known"
        )
    ranks = {len(shape) for shape in visit.call.input_shapes[:1]}
    outputs = tuple(
        alike(s, visit.inputs[0].channel_axis if len(s) in ranks else -1, *[math.nan] * 3)
        for s in visit.call.output_shapes
    )
    lost = [lost_gradient(signal) for signal in visit.inputs]
    return Outcome(outputs, lambda _: lost)


def lost_gradient(signal: Signal) -> Gradient:
    """A gradient of which nothing is known."""
    return Gradient(tuple(np.full(m.mean.shape, math.nan) for _, m in signal.parts))


def only_first(gradient: Gradient | None, count: int) -> Gradients:
    """A gradient for the first of several inputs."""
    return (gradient, *[None] * (count - 1))


def not_modelled(visit: Visit, what: str) -> Outcome:
    """Unknown, with a note that says what is."""
    return unknown(visit, f"{what} is not modelled")
