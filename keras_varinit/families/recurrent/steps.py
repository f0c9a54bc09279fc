"""The steps of a sequence that are computed for a recurrent layer, and their moments.

For a long sequence, only its first and last steps are computed. The middle one stands for all
others, which is right if states and gradients have converged there.
"""

import dataclasses
import math

import numpy as np

from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.recurrence import Steps
from keras_varinit.maths.windows import Array, Axis, Integers
from keras_varinit.signals.outcome import Gradient

_LARGEST_RADIUS = 24

_APART = 8  # steps over which a converged quantity must not change


@dataclasses.dataclass(frozen=True)
class Clock:
    """The computed steps of an axis, in the order in which the layer reads them.

    Args:
        axis: The axis of the sequence.
        reads: (steps,), the class of position of each step's input.
        writes: (steps,), the class of position of each step's output.
        shares: (steps,), the number of steps that each stands for: 1, except for the middle step
            of a long sequence.
        backwards: Whether the layer reads the sequence from its end.
    """

    axis: Axis
    reads: Integers
    writes: Integers
    shares: Array
    backwards: bool

    @property
    def middle(self) -> int:
        """The step that stands for many in a long sequence."""
        return len(self.shares) // 2

    @property
    def is_long(self) -> bool:
        """Whether steps are left out."""
        return bool(self.shares[self.middle] > 1)

    def average(self, values: Array) -> float:
        """Mean of (steps,) values over all steps."""
        return float(np.sum(self.shares * values) / np.sum(self.shares))

    def members(self, classes: Integers) -> Array:
        """(steps, classes): the number of steps in each class of position."""
        return np.asarray(self.shares[:, None] * (classes[:, None] == np.arange(self.axis.count)))

    def by_class(self, values: Array, classes: Integers) -> Array:
        """Means of (steps,) values over the steps of each class."""
        members = self.members(classes)
        return np.asarray(values @ members / members.sum(axis=0))


def clock_of(axis: Axis, limit: int, *, backwards: bool) -> Clock:
    """The steps to compute for an axis of known size, at most `limit`."""
    size = axis.size or 0
    count = min(size, limit)
    positions, shares = np.arange(count), np.ones(count)
    positions[count // 2 :] += size - count
    shares[count // 2] += size - count
    reads = size - 1 - positions if backwards else positions
    return Clock(axis, axis.classes(reads), axis.classes(positions), shares, backwards)


def steps_of(moments: Moments, clock: Clock) -> Steps:
    """The moments of a sequence in the order in which the layer reads it."""
    classes, (radius,) = clock.reads, moments.radius
    others = moments.far[np.ix_(classes, classes)]
    apart = np.arange(len(classes))[None, :] - np.arange(len(classes))[:, None]
    offset = -apart if clock.backwards else apart
    place = np.clip(offset + radius, 0, 2 * radius)
    near = moments.excess[place, classes[:, None]]
    own = others + np.where(np.abs(offset) <= radius, near, 0.0)
    return Steps(moments.mean[classes], (own + own.T) / 2, (others + others.T) / 2)


def moments_of(steps: Steps, clock: Clock) -> Moments:
    """The moments of an output sequence by classes of position."""
    classes, count = clock.writes, len(clock.shares)
    members = clock.members(classes)
    sizes = members.sum(axis=0)
    others = np.array(steps.others)
    if clock.is_long:
        # Nearly all pairs of the steps that the middle one stands for are far apart.
        middle, many = clock.middle, clock.shares[clock.middle]
        apart = others[middle, middle // 2]
        others[middle, middle] = apart + (others[middle, middle] - apart) / many
    far = members.T @ others @ members / np.outer(sizes, sizes)
    over = steps.own - far[np.ix_(classes, classes)]
    radius = _radius(over)
    excess = np.zeros((2 * radius + 1, clock.axis.count))
    for offset in range(-radius, radius + 1):
        start, stop = max(-offset, 0), count - max(offset, 0)
        near = np.diagonal(over, offset)
        excess[offset + radius] = near @ members[start:stop] / sizes
    mean = clock.by_class(steps.mean, classes)
    return Moments((clock.axis,), mean, far, excess, (radius,))


def _radius(over: Array) -> int:
    """The largest offset at which steps of one example correlate more than those of two.

    `over` (steps, steps) is the excess of E h_t h_s within an example.
    """
    count = len(over)
    if count <= 15:
        return count - 1
    scale = 0.01 * float(np.mean(np.abs(np.diagonal(over))))
    alike_ = [k for k in range(count) if float(np.mean(np.abs(np.diagonal(over, k)))) > scale]
    return min(max(alike_, default=0), _LARGEST_RADIUS)


@dataclasses.dataclass(frozen=True)
class SteppedGradient(Gradient):
    """A gradient with its correlations (steps, steps) between the computed steps, by position.

    Another recurrent layer needs them, since a fading gradient has no single correlation.
    """

    correlations: Array = dataclasses.field(default_factory=lambda: np.ones((1, 1)))

    def with_parts(self, parts: tuple[Array, ...]) -> Gradient:
        """Replaces the second moments and keeps the coherence."""
        if any(part.shape != self.parts[0].shape for part in parts):
            return super().with_parts(parts)
        return SteppedGradient(parts, self.coherence, self.local, correlations=self.correlations)

    def less_coherent(self, far: float, adjacent: float) -> Gradient:
        """Multiplies the correlations of distant and of adjacent pairs by a factor each."""
        less = super().less_coherent(far, adjacent)
        steps = np.arange(len(self.correlations))
        apart = np.abs(np.subtract.outer(steps, steps))
        kept = np.where(apart == 1, adjacent, np.where(apart == 0, 1.0, far))
        return SteppedGradient(
            self.parts, less.coherence, less.local, correlations=self.correlations * kept
        )

    def turned(self) -> "SteppedGradient":
        """The gradient of the reversed sequence."""
        return dataclasses.replace(self, correlations=np.flip(self.correlations))


def stepped(part: Array, count: int, matrix: Array, clock: Clock) -> SteppedGradient:
    """The gradient at the input of a recurrent layer.

    Args:
        part: (classes,), E g² by class of position.
        count: Number of groups of channels, which all have this gradient.
        matrix: (steps, steps), E g_t g_s in the order in which the layer reads.
        clock: The steps.
    """
    far, adjacent = coherence_of(matrix, clock)
    local = (adjacent - far) / (1 - far) if far < 1 else 0.0
    stds = np.sqrt(np.diagonal(matrix))
    scale = np.outer(stds, stds)
    correlations = np.divide(matrix, scale, out=np.eye(len(stds)), where=scale > 0)
    if clock.backwards:
        correlations = np.flip(correlations)
    return SteppedGradient((part,) * count, far, max(local, 0.0), correlations=correlations)


def arriving_at(gradient: Gradient, clock: Clock) -> Array:
    """(steps, steps): E g_t g_s of the gradients at the output's steps."""
    seconds = np.sqrt(gradient.parts[0][clock.writes])
    known = getattr(gradient, "correlations", None)
    if known is not None and len(known) == len(seconds):
        return np.asarray(np.outer(seconds, seconds) * known)
    apart = np.abs(np.subtract.outer(np.arange(len(seconds)), np.arange(len(seconds))))
    local = (1 - gradient.coherence) * gradient.local**apart
    alike = np.where(apart == 0, 1.0, gradient.coherence + local)
    return np.asarray(np.outer(seconds, seconds) * alike)


def has_settled(seconds: Array, clock: Clock) -> bool:
    """Whether the second moments (steps,) of a state converge before the middle step."""
    if not clock.is_long:
        return True
    before = float(seconds[clock.middle - _APART])
    return abs(float(seconds[clock.middle]) - before) < 0.05 * before


def coherence_of(matrix: Array, clock: Clock) -> tuple[float, float]:
    """The mean correlations of the gradients at two steps, and at two adjacent steps.

    `matrix` (steps, steps) holds E g_t g_s. Both correlations are relative to the mean square over
    steps, so that the gradient of a sum over the steps is exact.
    """
    size, shares = float(np.sum(clock.shares)), clock.shares
    total = float(shares @ np.diagonal(matrix))
    if size < 2 or not total > 0:
        return 0.0, 0.0
    apart = matrix - np.diag(np.diagonal(matrix))
    # The sums count each pair twice.
    beside = np.diagonal(apart, 1)
    everywhere = float(shares @ apart.sum(axis=1)) / (size - 1)
    adjacent = float(shares[1:] @ beside + shares[:-1] @ beside) / 2 * size / (size - 1)
    return _share(everywhere / total), _share(adjacent / total)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def faded(seconds: Array, arriving: Array, clock: Clock) -> Array:
    """Factors (steps,) on gradients for their decay over the steps that are left out.

    Gradients that arrive at every step have converged in the middle. Gradients that arrive only at
    the end decay geometrically. NaN in other cases.

    Args:
        seconds: (steps,), E g² at the computed steps.
        arriving: (steps,), E g² of the gradients that arrive at the outputs.
        clock: The steps.
    """
    middle, many = clock.middle, float(clock.shares[clock.middle])
    later = float(np.mean(seconds[middle + _APART - 2 : middle + _APART + 3]))
    here = float(np.mean(seconds[middle - 2 : middle + 3]))
    if not math.isfinite(here + later) or later == 0:
        return np.ones_like(seconds)
    factors = np.ones_like(seconds)
    if arriving[middle] > 0.1 * here:
        return factors if abs(here / later - 1) < 0.15 else factors * math.nan
    ratio = (here / later) ** (1 / _APART)
    if ratio > 0.97:
        return factors * math.nan
    factors[middle] = (1 - ratio**many) / (1 - ratio) / many
    factors[:middle] = ratio ** (many - 1)
    return factors
