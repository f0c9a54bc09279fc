"""The values that rules take and return: `Visit`, `Signal`, `Gradient` and `Outcome`."""

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
    """Moments of a tensor, by groups of channels.

    Args:
        parts: (number of channels, moments) of each group.
        channel_axis: The tensor's main channel dimension.
        other_axes: Further channel dimensions, counted from the right, such as the heads of
            attention. All remaining dimensions except the batch are positions.
        lead: Of a tensor that does not depend on the model's inputs, so that its first dimension
            is no batch: E z_p z_q ÷ E z² of two places along it. None: not known.
        alike: Whether one channel was added to all, so that they are not independent.
    """

    parts: tuple[tuple[int, Moments], ...]
    channel_axis: int = -1
    other_axes: tuple[int, ...] = ()
    lead: float | None = None
    alike: bool = False

    @property
    def axes(self) -> Axes:
        """Axes of the positions."""
        return self.parts[0][1].axes

    @property
    def channels(self) -> int:
        """Number of channels."""
        return sum(n for n, _ in self.parts)

    @property
    def merged(self) -> Moments:
        """Moments averaged over all channels."""
        return combined([m for _, m in self.parts], [n for n, _ in self.parts])

    @property
    def second_moment(self) -> float:
        """E z² over all entries."""
        return sum(n * m.second_moment for n, m in self.parts) / self.channels

    def is_known(self) -> bool:
        """Whether the moments are numbers."""
        return all(m.is_known() for _, m in self.parts)

    def each(self, function: Callable[[Moments], Moments]) -> "Signal":
        """Applies `function` to each group; groups sharing one object still share one after."""
        done: dict[int, Moments] = {}
        parts = []
        for n, moments in self.parts:
            if id(moments) not in done:
                done[id(moments)] = function(moments)
            parts.append((n, done[id(moments)]))
        return dataclasses.replace(self, parts=tuple(parts), lead=None)

    def scaled(self, factor: float) -> "Signal":
        """Second moments times `factor`."""
        return dataclasses.replace(self.each(lambda m: m.scaled(factor)), lead=self.lead)


@dataclasses.dataclass(frozen=True)
class Gradient:
    """E (dL/dz)² by group of channels and class of position.

    Args:
        parts: For each group of channels, an array of second moments by class of position.
        coherence: Correlation of the gradients at two distant positions of a channel.
        local: Excess correlation of adjacent positions, as a share of 1 - `coherence`.
        through: The activation that the gradient has just passed back through.
        phases: Components along the orthonormal gradients at points where paths part:
            (number of the point, amplitude).
        in_step: Whether all channels share one gradient, because their sum was taken.
        here: Factor on the second moment at the preceding kernel only; it is not passed further
            back. It arises where normalization scales up channels of small kernels.
        radial: Factor on the gradient of a factor common to all channels. Normalization removes
            nearly all of it.
        bend: A `curvature.Bend`: how the gradient depends on the pre-activations.
        own: A `curvature.Own`: the share of the gradient that depends on the signal itself.
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
        """Replaces the second moments and keeps the coherence."""
        return Gradient(parts, self.coherence, self.local)

    @property
    def adjacent(self) -> float:
        """Correlation of the gradients at adjacent positions."""
        return self.coherence + (1 - self.coherence) * self.local

    def less_coherent(self, far: float, adjacent: float) -> "Gradient":
        """Multiplies the correlations of distant and of adjacent pairs by a factor each."""
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
        """E (dL/dz)², weighing all groups and classes equally."""
        return float(np.mean([np.mean(g) if g.size else 0.0 for g in self.parts]))

    def parting(self, number: int) -> "Gradient":
        """Adds a phase for the part that earlier branching points do not explain."""
        left = self.power - sum(amplitude**2 for _, amplitude in self.phases)
        if not left > 1e-9 * self.power:
            return self
        return dataclasses.replace(self, phases=(*self.phases, (number, math.sqrt(left))))

    def in_phase(self, other: "Gradient") -> float:
        """The expected product of two gradients."""
        amplitudes = dict(other.phases)
        return sum(amplitude * amplitudes.get(number, 0.0) for number, amplitude in self.phases)

    def times_phases(self, factor: float) -> tuple[tuple[int, float], ...]:
        """The phases times `factor`, the mean of a factor on the gradient."""
        return tuple((n, a * factor) for n, a in self.phases) if factor else ()


Gradients = Sequence[Gradient | None]

Pullback = Callable[[Gradients], Gradients]


def added(first: Gradient | None, second: Gradient) -> Gradient:
    """Sums the gradients of two uses of a tensor, which are independent up to shared phases."""
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
    """The result of a rule: output signals, and a pullback of gradients to the inputs."""

    outputs: tuple[Signal, ...]
    pullback: Pullback


@dataclasses.dataclass(frozen=True)
class Lineage:
    """The origin of a tensor.

    Args:
        key: Equal for tensors computed by the same operations with the same weights.
        sources: The model inputs it depends on, as the bits of an integer.
    """

    key: int
    sources: int

    def is_twin_of(self, other: "Lineage") -> bool:
        """Whether the same operations computed both, from disjoint model inputs."""
        return self.key == other.key and not self.sources & other.sources


@dataclasses.dataclass(frozen=True)
class Visit:
    """One call of an operation, as its signal rule sees it.

    Args:
        call: The call, with its shapes.
        role: Its role in a stage.
        inputs: A signal for each input tensor.
        variance_of: `variance_of(kernel, gain)` is the variance of the kernel's entries, where
            the kernel's output has the second moment gain·variance.
        forward: `forward(kernel, second)` records E u² of a kernel's output u.
        backward: `backward(kernel, second)` records E (dL/du)².
        note: Adds a note for the user.
        values: The values of inputs that are known numbers, else None.
        at_output: Whether every output is an output of the model.
        masks: Masks by tensor; they cover tensors that no weight has touched.
        lineages: The lineage of each input.
        reaches: Bit sets; inputs that share a bit depend on each other.
        reach_of: The bit set of another signal, None if unknown.
        narrowness: The narrowness of each input; see the module `narrowness`.
        renewed: Returns the correlation to assume where only the scale is known.
        sources: The source of each input; see the module `narrowness`.
        ties: Bits that stand for parts of one softmax.
        is_delta: Whether a kernel is zero at every tap of its window but the central one.
        scale_of: E γ² of a normalization's scale; None for its present value.
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
    is_delta: Callable[[Any], bool] = lambda _: False
    scale_of: Callable[[Any], float | None] = lambda _: None

    @property
    def operation(self) -> Any:
        """The layer or operation that is called."""
        return self.call.operation

    @property
    def output_shape(self) -> Shape:
        """Shape of the first output."""
        return self.call.output_shapes[0]


def alike(shape: Shape, channel_axis: int, mean: float, second: float, pair: float) -> Signal:
    """A signal of the given shape with equal moments everywhere.

    Args:
        shape: Shape of the tensor, batch included.
        channel_axis: Its channel dimension; the last one if out of range.
        mean: E z.
        second: E z².
        pair: E z_p z_q of two distant positions p and q.
    """
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
    """Outputs and gradients of unknown scale (NaN).

    `reason` is added to the notes if any input was known.
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
    """A gradient of unknown scale (NaN) for a signal."""
    return Gradient(tuple(np.full(m.mean.shape, math.nan) for _, m in signal.parts))


def only_first(gradient: Gradient | None, count: int) -> Gradients:
    """A gradient for the first of `count` inputs, None for the others."""
    return (gradient, *[None] * (count - 1))


def not_modelled(visit: Visit, what: str) -> Outcome:
    """`unknown`, noting that `what` is not modelled."""
    return unknown(visit, f"{what} is not modelled")
