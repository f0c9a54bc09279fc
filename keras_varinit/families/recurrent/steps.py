"""The steps of a sequence that a recurrent layer is followed over, and their moments.

A long sequence is followed over its first and its last steps; the one in the middle stands for all
those left out, which is right where states and gradients have settled by then.
"""

import dataclasses
import math

import numpy as np

from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.recurrence import Steps
from keras_varinit.maths.windows import Array, Axis, Integers
from keras_varinit.signals.outcome import Gradient

_LARGEST_RADIUS = 24

_APART = 8  # steps over which what has settled must not change


@dataclasses.dataclass(frozen=True)
class Clock:
    """The steps that are followed, of an axis that may have more.

    `reads` and `writes` are the classes of position of their input and output, `shares` the number
    of steps that each stands for: 1, but for the one in the middle of a long sequence.
    """

    axis: Axis
    reads: Integers
    writes: Integers
    shares: Array
    backwards: bool

    @property
    def middle(self) -> int:
        """The step that stands for many where the sequence is long."""
        return len(self.shares) // 2

    @property
    def is_long(self) -> bool:
        """Whether steps are left out."""
        return bool(self.shares[self.middle] > 1)

    def average(self, values: Array) -> float:
        """Mean over all steps."""
        return float(np.sum(self.shares * values) / np.sum(self.shares))

    def members(self, classes: Integers) -> Array:
        """Steps in each class of position, (steps, classes)."""
        return np.asarray(self.shares[:, None] * (classes[:, None] == np.arange(self.axis.count)))

    def by_class(self, values: Array, classes: Integers) -> Array:
        """Mean over the steps of each class."""
        members = self.members(classes)
        return np.asarray(values @ members / members.sum(axis=0))


def clock_of(axis: Axis, limit: int, *, backwards: bool) -> Clock:
    """The steps to follow of an axis of known size, at most `limit`."""
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
        # Of the steps that one stands for, nearly all pairs are far apart.
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
    """The offset up to which steps of one example are more alike than those of two."""
    count = len(over)
    if count <= 15:
        return count - 1
    scale = 0.01 * float(np.mean(np.abs(np.diagonal(over))))
    alike_ = [k for k in range(count) if float(np.mean(np.abs(np.diagonal(over, k)))) > scale]
    return min(max(alike_, default=0), _LARGEST_RADIUS)


@dataclasses.dataclass(frozen=True)
class SteppedGradient(Gradient):
    """A gradient whose correlations between the followed steps are known, in order of position.

    The next recurrent layer wants them: those of a gradient that fades are no single number.
    """

    correlations: Array = dataclasses.field(default_factory=lambda: np.ones((1, 1)))

    def with_parts(self, parts: tuple[Array, ...]) -> Gradient:
        """Other second moments, as coherent."""
        if any(part.shape != self.parts[0].shape for part in parts):
            return super().with_parts(parts)
        return SteppedGradient(parts, self.coherence, self.local, correlations=self.correlations)

    def less_coherent(self, far: float, adjacent: float) -> Gradient:
        """The correlations of far and of adjacent pairs times a factor each."""
        less = super().less_coherent(far, adjacent)
        steps = np.arange(len(self.correlations))
        apart = np.abs(np.subtract.outer(steps, steps))
        kept = np.where(apart == 1, adjacent, np.where(apart == 0, 1.0, far))
        return SteppedGradient(
            self.parts, less.coherence, less.local, correlations=self.correlations * kept
        )

    def turned(self) -> "SteppedGradient":
        """From the end of the sequence to its start."""
        return dataclasses.replace(self, correlations=np.flip(self.correlations))


def stepped(part: Array, count: int, matrix: Array, clock: Clock) -> SteppedGradient:
    """The gradient at the input of E g² `part` by class, the same for `count` groups of channels.

    `matrix` holds E g_t g_s in the order in which the layer reads.
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
    """E g_t g_s of the gradients at the output's steps."""
    seconds = np.sqrt(gradient.parts[0][clock.writes])
    known = getattr(gradient, "correlations", None)
    if known is not None and len(known) == len(seconds):
        return np.asarray(np.outer(seconds, seconds) * known)
    apart = np.abs(np.subtract.outer(np.arange(len(seconds)), np.arange(len(seconds))))
    local = (1 - gradient.coherence) * gradient.local**apart
    alike = np.where(apart == 0, 1.0, gradient.coherence + local)
    return np.asarray(np.outer(seconds, seconds) * alike)


def has_settled(seconds: Array, clock: Clock) -> bool:
    """Whether the second moments of a state stay the same towards the middle."""
    if not clock.is_long:
        return True
    before = float(seconds[clock.middle - _APART])
    return abs(float(seconds[clock.middle]) - before) < 0.05 * before


def coherence_of(matrix: Array, clock: Clock) -> tuple[float, float]:
    """Of gradients by step: the mean correlation of two steps, and of two adjacent ones.

    Both are shares of the mean square, so that the gradient of a sum over the steps is right.
    """
    size, shares = float(np.sum(clock.shares)), clock.shares
    total = float(shares @ np.diagonal(matrix))
    if size < 2 or not total > 0:
        return 0.0, 0.0
    apart = matrix - np.diag(np.diagonal(matrix))
    # The sums count each pair from both of its sides.
    beside = np.diagonal(apart, 1)
    everywhere = float(shares @ apart.sum(axis=1)) / (size - 1)
    adjacent = float(shares[1:] @ beside + shares[:-1] @ beside) / 2 * size / (size - 1)
    return _share(everywhere / total), _share(adjacent / total)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def faded(seconds: Array, arriving: Array, clock: Clock) -> Array:
    """What the gradients of the steps in the middle and before lose over the steps left out.

    Where gradients arrive at every step they have settled; where they come from the end alone they
    fade geometrically. NaN where they do neither.
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
