"""Mean-field theory of recurrent cells: SimpleRNN, LSTM and GRU with many units.

The same weights act at every step, so the pre-activations of one unit and gate are a Gaussian
process over the steps, of covariance

    E a_t a_s = Var(W)·n·E x_t x_s + Var(U)·m·E h_{t-1} h_{s-1},

and different gates are independent processes of that covariance. A state is a function of its own
unit's paths, and its moments give the covariance one step on. SimpleRNN is solved by Hermite
series. The state of an LSTM or GRU is a nonlinear function of its whole past, which no quadrature
covers: paths of `SAMPLES` units are drawn for two examples at once, from normals with a fixed seed
and exact second moments. Gradients are propagated in the same way: what U and the next layer send
to h_t is Gaussian, and independent of the forward paths.

Reference: Chen, Pennington and Schoenholz (2018), arXiv:1806.05394.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from keras_varinit.maths.hermite import TERMS, point_law, products_between
from keras_varinit.maths.quadrature import Activation

Array = npt.NDArray[np.float64]

Moment = tuple[float, float, float]  # E z, E z², and E z z' of two examples

SAMPLES = 4096


@dataclasses.dataclass(frozen=True)
class Steps:
    """Uncentred moments of a sequence, by step.

    `mean[t]` = E z_t, (steps,); `own[t, s]` = E z_t z_s of one example and `others[t, s]` of two
    examples, (steps, steps) each.
    """

    mean: Array
    own: Array
    others: Array

    def scaled(self, own: float, others: float) -> "Steps":
        """The output of a kernel, of mean 0: second moments times a factor."""
        return Steps(np.zeros_like(self.mean), self.own * own, self.others * others)


@dataclasses.dataclass(frozen=True)
class Cell:
    """The parameters of a cell.

    `scale` is Var(U)·m, `kept` the share of entries that recurrent dropout keeps. `biases` are
    (gates, units), and so are `recurrent_biases`, those added to the product with U.
    """

    scale: float
    activation: Activation
    gate: Activation
    biases: Array
    recurrent_biases: Array
    kept: float = 1.0
    reset_after: bool = True


@dataclasses.dataclass(frozen=True)
class Returned:
    """Second moments of the gradients δ at the outputs of a cell's kernels.

    `kernel[t, s]`: Σ over gates of E δ_t δ_s at W's output, (steps, steps). `recurrent[t]`: mean
    over gates of E δ_t² at U's output, (steps,). `start`: E g² at each initial state.
    """

    kernel: Array
    recurrent: Array
    start: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class States:
    """The outputs of a cell.

    `last`: the `Moment` of each state after the last step. `recurrent[t]`: E (U h_{t-1})², averaged
    over gates, (steps,). `pullback`: the backward pass, from E g_t g_s of the gradients at the
    outputs, (steps, steps), and E g² at each last state.
    """

    outputs: Steps
    last: tuple[Moment, ...]
    recurrent: Array
    pullback: Callable[[Array, Sequence[float]], Returned]


ZERO: Moment = (0.0, 0.0, 0.0)


def simple_recurrence(inputs: Steps, cell: Cell, start: Sequence[Moment] = (ZERO,)) -> States:
    """h_t = f(W x_t + U h_{t-1} + b): pairs of steps by Hermite series."""
    count = len(inputs.mean)
    bias, spread = float(np.mean(cell.biases)), float(np.var(cell.biases))
    scale = cell.scale / cell.kept
    # State 0 is the initial state.
    mean, (own, others) = np.zeros(count + 1), np.zeros((2, count + 1, count + 1))
    mean[0], own[0, 0], others[0, 0] = start[0]
    series, slopes, stds = np.zeros((count, TERMS)), np.zeros((count, TERMS)), np.zeros(count)
    covariance = np.zeros((count, count))
    for t in range(count):
        now, of_two = slice(t + 1), inputs.others[t, : t + 1] + cell.scale * others[t, : t + 1]
        covariance[t, now] = inputs.own[t, now] + scale * own[t, now] + spread
        covariance[now, t] = covariance[t, now]
        stds[t] = math.sqrt(max(covariance[t, t], 0.0))
        law = point_law(cell.activation, _rounded(bias), _rounded(float(stds[t])))
        series[t], slopes[t], mean[t + 1] = law.series, law.slope_series, law.first
        for target, row in ((own, covariance[t, now]), (others, of_two + spread)):
            rho = np.clip(row / np.maximum(stds[now] * stds[t], 1e-300), -1.0, 1.0)
            target[t + 1, 1 : t + 2] = products_between(series[t], series[now], rho)
            target[t + 1, 0] = mean[t + 1] * mean[0]
            target[: t + 2, t + 1] = target[t + 1, : t + 2]

    def pullback(gradient: Array, carried: Sequence[float]) -> Returned:
        deltas = np.zeros((count + 1, count + 1))
        for t in reversed(range(count)):
            arriving = gradient[t, t:] + scale * deltas[t + 1, t + 1 :]
            if t == count - 1:
                arriving = arriving + sum(carried)
            rho = covariance[t, t:] / np.maximum(stds[t:] * stds[t], 1e-300)
            passed = products_between(slopes[t], slopes[t:], np.clip(rho, -1.0, 1.0))
            deltas[t, t:-1] = deltas[t:-1, t] = arriving * passed
        kernel = deltas[:-1, :-1]
        return Returned(kernel, np.diagonal(kernel), (scale * float(deltas[0, 0]),))

    last = float(mean[-1]), float(own[-1, -1]), float(others[-1, -1])
    outputs = Steps(mean[1:], own[1:, 1:], others[1:, 1:])
    return States(outputs, (last,), scale * np.diagonal(own)[:-1], pullback)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


@functools.lru_cache(maxsize=10)
def _normals(steps: int, channels: int, stream: int) -> Array:
    """Normals (2, steps, channels, SAMPLES) of mean 0, orthonormal over a channel's steps."""
    rng = np.random.default_rng((stream, steps, channels))
    drawn = rng.standard_normal((2, channels, steps, SAMPLES))
    drawn -= drawn.mean(axis=-1, keepdims=True)
    factor = np.linalg.cholesky(drawn @ drawn.swapaxes(-1, -2) / SAMPLES)
    whitened = np.linalg.solve(factor, drawn)
    return np.ascontiguousarray(whitened.swapaxes(1, 2))


class _Path:
    """Gaussian paths a_t = Σ_{s≤t} L_ts ξ_s, with the rows of L Lᵀ supplied step by step."""

    def __init__(self, normals: Array) -> None:
        self.normals = normals.reshape(len(normals), -1)
        self.factor = np.zeros((len(normals), len(normals)))
        self.free: list[int] = []  # steps not determined by earlier ones

    def step(self, row: Array) -> Array:
        """The next step, from its covariance with each step so far and with itself: (t + 1,)."""
        t, known = len(row) - 1, self.free
        if not np.all(np.isfinite(row)):
            return np.full(self.normals.shape[1], math.nan)
        share = np.linalg.solve(self.factor[np.ix_(known, known)], row[known])
        self.factor[t, known] = share
        rest = row[t] - share @ share
        if rest > 1e-9 * abs(row[t]):
            self.factor[t, t] = math.sqrt(rest)
            self.free.append(t)
        return np.asarray(self.factor[t, : t + 1] @ self.normals[: t + 1])


class _Paths:
    """Paths of two examples, from their sum and difference, which are independent."""

    def __init__(self, steps: int, channels: int, stream: int) -> None:
        self.shape = (channels, SAMPLES)
        self.sum, self.difference = map(_Path, _normals(steps, channels, stream))

    def step(self, own: Array, others: Array) -> Array:
        """The next step, (2, channels, SAMPLES), from covariances with the steps so far."""
        total, apart = self.sum.step(own + others), self.difference.step(own - others)
        both = np.stack([total + apart, total - apart]) / math.sqrt(2)
        return both.reshape(2, *self.shape)


class _Record:
    """Values (2, SAMPLES) of each step, and moments of pairs of steps."""

    def __init__(self, steps: int) -> None:
        self.values = np.zeros((steps, 2 * SAMPLES))
        self.own, self.others = np.zeros((2, steps, steps))
        self.filled = 0

    def append(self, value: Array) -> None:
        """Adds the next step: (2, SAMPLES)."""
        t, self.filled = self.filled, self.filled + 1
        self.values[t] = value.ravel()
        until = self.values[: t + 1]
        for target, other in ((self.own, value), (self.others, value[::-1])):
            row = until @ other.ravel() / (2 * SAMPLES)
            target[t, : t + 1] = target[: t + 1, t] = row

    def last(self) -> Moment:
        """Moments at the last step."""
        return float(self.values[-1].mean()), float(self.own[-1, -1]), float(self.others[-1, -1])


class _Gradients:
    """Gradients at the gates, (gates, 2·SAMPLES) of each step, from the last one back."""

    def __init__(self, steps: int, gates: int) -> None:
        self.values = np.zeros((steps + 1, gates * 2 * SAMPLES))
        self.own = np.zeros((steps + 1, steps + 1))

    def put(self, t: int, values: Sequence[Array]) -> None:
        """Sets step t, one array for each gate."""
        self.values[t] = np.concatenate([v.ravel() for v in values])
        row = self.values[t:] @ self.values[t] / (2 * SAMPLES)
        self.own[t, t:] = self.own[t:, t] = row


class _Arriving:
    """A Gaussian gradient, (2, SAMPLES) of each step, from the last one back."""

    def __init__(self, steps: int, stream: int) -> None:
        normals = _normals(steps, 1, stream)
        self.path = _Path(normals.swapaxes(0, 1).reshape(steps, -1))

    def step(self, row: Array) -> Array:
        """The next step, from its covariance with itself and then with the later ones in order."""
        return self.path.step(row[::-1]).reshape(2, SAMPLES)


def _slope(activation: Activation, at: Array) -> Array:
    """The derivative, from a table with cells of 1/64 between -9 and 9."""
    table = point_law(activation, 0.0, 1.0).slopes
    place = np.clip(np.nan_to_num((at + 9.0) * 64), 0, len(table) - 1)
    return np.asarray(table[place.astype(np.int64)])


def _by_sample(biases: Array) -> Array:
    """Biases of the units that the samples represent: (gates, SAMPLES)."""
    return biases[:, np.arange(SAMPLES) % biases.shape[1]]


def _from_state(record: _Record, cell: Cell, inputs: Steps, t: int) -> tuple[Array, Array]:
    """Covariances of W x_t + U z_t with the steps so far, (t + 1,) each; `record` is of z."""
    own = inputs.own[t, : t + 1] + cell.scale / cell.kept * record.own[t, : t + 1]
    return own, inputs.others[t, : t + 1] + cell.scale * record.others[t, : t + 1]


def _steps_of(record: _Record) -> Steps:
    """The moments of a record without its initial state."""
    return Steps(record.values[1:].mean(axis=1), record.own[1:, 1:], record.others[1:, 1:])


def _started(state: Moment, stream: int) -> Array:
    """Values (2, SAMPLES) of a Gaussian initial state."""
    mean, second, pair = state
    total, apart = _normals(1, 1, stream)[:, 0, 0]
    variance, common = max(second - mean**2, 0.0), pair - mean**2
    total = total * math.sqrt(max(variance + common, 0.0) / 2)
    apart = apart * math.sqrt(max(variance - common, 0.0) / 2)
    return mean + np.stack([total + apart, total - apart])


def lstm_recurrence(inputs: Steps, cell: Cell, start: Sequence[Moment] = (ZERO, ZERO)) -> States:
    """c_t = f_t c_{t-1} + i_t g_t, h_t = o_t·tanh(c_t); the order of the gates is i f g o."""
    count = len(inputs.mean)
    paths, bias = _Paths(count, 4, 0), _by_sample(cell.biases + cell.recurrent_biases)
    h, c = _Record(count + 1), _Record(count + 1)
    carry = _started(start[1], 9)
    h.append(_started(start[0], 8))
    c.append(carry)
    pre = np.zeros((count, 2, 4, SAMPLES))
    for t in range(count):
        pre[t] = paths.step(*_from_state(h, cell, inputs, t)) + bias
        i, f, o = (cell.gate.function(pre[t][:, k]) for k in (0, 1, 3))
        carry = f * carry + i * cell.activation.function(pre[t][:, 2])
        c.append(carry)
        h.append(o * cell.activation.function(carry))

    def pullback(gradient: Array, carried: Sequence[float]) -> Returned:
        arriving, back = _Arriving(count, 1), _Gradients(count, 4)
        at_last = _normals(1, 1, 2)[:, 0, 0]
        carry = at_last * math.sqrt(max(carried[1], 0.0))
        for t in reversed(range(count)):
            row = gradient[t, t:] + cell.scale / cell.kept * back.own[t + 1, t + 1 :]
            into_h = arriving.step(row + (carried[0] if t == count - 1 else 0.0))
            i, f, o = (cell.gate.function(pre[t][:, k]) for k in (0, 1, 3))
            slopes = [
                _slope(cell.activation if k == 2 else cell.gate, pre[t][:, k]) for k in range(4)
            ]
            now, before = (c.values[s].reshape(2, SAMPLES) for s in (t + 1, t))
            carry = carry + into_h * o * _slope(cell.activation, now)
            candidate = cell.activation.function(pre[t][:, 2])
            into = (carry * candidate, carry * before, carry * i)
            into_o = into_h * cell.activation.function(now)
            back.put(t, [g * s for g, s in zip((*into, into_o), slopes, strict=True)])
            carry = carry * f
        kernel = back.own[:-1, :-1]
        at_start = cell.scale / cell.kept * float(kernel[0, 0]), float(np.mean(carry**2))
        return Returned(kernel, np.diagonal(kernel) / 4, at_start)

    recurrent = cell.scale / cell.kept * np.diagonal(h.own)[:-1]
    return States(_steps_of(h), (h.last(), c.last()), recurrent, pullback)


def gru_recurrence(inputs: Steps, cell: Cell, start: Sequence[Moment] = (ZERO,)) -> States:
    """h_t = z_t h_{t-1} + (1 - z_t)·g_t; the order of the gates is z r g.

    g_t = f(W x_t + r_t·(U h_{t-1})) with `reset_after`, else f(W x_t + U (r_t h_{t-1})).
    """
    count = len(inputs.mean)
    gates, candidate, inner = _Paths(count, 2, 3), _Paths(count, 1, 4), _Paths(count, 1, 5)
    bias, own_bias = _by_sample(cell.biases), _by_sample(cell.recurrent_biases)
    h, kept = _Record(count + 1), _Record(count)
    h.append(_started(start[0], 8))
    z, r, into_g, product = (np.zeros((count, 2, SAMPLES)) for _ in range(4))
    pre = np.zeros((count, 2, 2, SAMPLES))
    for t in range(count):
        own, others = _from_state(h, cell, inputs, t)
        pre[t] = gates.step(own, others) + (bias + own_bias)[:2]
        z[t], r[t] = (cell.gate.function(pre[t][:, k]) for k in range(2))
        before = h.values[t].reshape(2, SAMPLES)
        if cell.reset_after:
            alone = inputs.own[t, : t + 1], inputs.others[t, : t + 1]
            product[t] = inner.step(own - alone[0], others - alone[1])[:, 0] + own_bias[2]
            into_g[t] = candidate.step(*alone)[:, 0] + bias[2] + r[t] * product[t]
        else:
            kept.append(r[t] * before)
            into_g[t] = candidate.step(*_from_state(kept, cell, inputs, t))[:, 0] + bias[2]
        h.append(z[t] * before + (1 - z[t]) * cell.activation.function(into_g[t]))

    def pullback(gradient: Array, carried: Sequence[float]) -> Returned:
        at_kernel, at_recurrent = _Gradients(count, 3), _Gradients(count, 3)
        at_gates, at_product = _Gradients(count, 2), _Gradients(count, 1)
        arriving, reset = _Arriving(count, 6), _Arriving(count, 7)
        carry, scale = np.zeros((2, SAMPLES)), cell.scale / cell.kept
        for t in reversed(range(count)):
            source = at_recurrent if cell.reset_after else at_gates
            row = gradient[t, t:] + scale * source.own[t + 1, t + 1 :]
            into_h = carry + arriving.step(row + (sum(carried) if t == count - 1 else 0.0))
            before = h.values[t].reshape(2, SAMPLES)
            new = cell.activation.function(into_g[t])
            for_g = into_h * (1 - z[t]) * _slope(cell.activation, into_g[t])
            for_z = into_h * (before - new) * _slope(cell.gate, pre[t][:, 0])
            at_u, carry = for_g, into_h * z[t]
            if cell.reset_after:
                at_u, into_r = for_g * r[t], for_g * product[t]
            else:
                at_product.put(t, [for_g])
                through = reset.step(scale * at_product.own[t, t:-1])
                into_r, carry = through * before, carry + through * r[t]
            for_r = into_r * _slope(cell.gate, pre[t][:, 1])
            at_gates.put(t, [for_z, for_r])
            at_kernel.put(t, [for_z, for_r, for_g])
            at_recurrent.put(t, [for_z, for_r, at_u])
        source = at_recurrent if cell.reset_after else at_gates
        at_start = scale * float(source.own[0, 0]) + float(np.mean(carry**2))
        recurrent = np.diagonal(at_recurrent.own)[:-1] / 3
        return Returned(at_kernel.own[:-1, :-1], recurrent, (at_start,))

    recurrent = np.array(np.diagonal(h.own)[:-1])
    if not cell.reset_after:
        recurrent = (2 * recurrent + np.diagonal(kept.own)) / 3
    return States(_steps_of(h), (h.last(),), cell.scale / cell.kept * recurrent, pullback)
