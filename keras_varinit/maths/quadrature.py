"""Quadrature over N(0, 1): moments of activations, and τ and γ of a stage with pooling.

The rule is composite Gauss-Legendre, 8 nodes on each panel of width 1/8 between -12 and 12. Every
multiple of 1/8 is a panel's edge, so the kinks of the usual activations (0, ±1/2, ±1, ±3, 6) cost
no accuracy, and a function's derivative is that of its interpolating polynomial on each panel.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

Function = Callable[[Array], Array]

_LIMIT = 12.0

_PANEL = 0.125

_ORDER = 8


@dataclasses.dataclass(frozen=True)
class Activation:
    """An element-wise function; equal `name` and `key` mean equal functions."""

    name: str
    function: Function = dataclasses.field(compare=False, repr=False)
    key: tuple[object, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pooling over windows of `size` entries."""

    kind: Literal["max", "average"]
    size: int


Stage = Sequence[Activation | Pool]


@functools.cache
def _rule() -> tuple[Array, Array, Array]:
    """Nodes s, weights w with Σ w·g(s) ≈ ∫ g ds, and one panel's differentiation matrix.

    Their shapes are (nodes,), (nodes,) and (`_ORDER`, `_ORDER`).
    """
    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    edges = np.arange(-_LIMIT, _LIMIT, _PANEL)
    s = (edges[:, None] + _PANEL * (nodes + 1) / 2).ravel()
    w = np.tile(weights * _PANEL / 2, len(edges))
    # Barycentric form of the derivative of the Lagrange polynomials at the nodes.
    gaps = nodes[:, None] - nodes[None, :] + np.eye(_ORDER)
    c = np.prod(gaps, axis=1)
    derivative = c[:, None] / c[None, :] / gaps
    np.fill_diagonal(derivative, 0.0)
    np.fill_diagonal(derivative, -derivative.sum(axis=1))
    return s, w, derivative * 2 / _PANEL


def normal_density(s: Array) -> Array:
    """φ(s), the standard normal density."""
    return np.exp(-s * s / 2) / math.sqrt(2 * math.pi)


def normal_distribution(s: Array) -> Array:
    """Φ(s), the standard normal distribution function."""
    return np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in s])


@functools.cache
def _distribution_at_nodes() -> Array:
    return normal_distribution(_rule()[0])


def expectation(function: Function) -> float:
    """E f(s), s ~ N(0, 1)."""
    s, w, _ = _rule()
    return float(np.sum(w * normal_density(s) * function(s)))


def second_moment(activation: Activation) -> float:
    """E f(s)², s ~ N(0, 1)."""
    return expectation(lambda s: activation.function(s) ** 2)


def stage_gains(stage: Stage) -> tuple[float, float]:
    """τ and γ of a stage: activations and poolings applied in turn to u ~ N(0, 1).

    τ is the second moment of the stage's output, γ the share of gradient variance that one output
    passes back to one u; the T entries of a pooling window count as independent (Henmi et al.):

    * no pooling: τ = E f², γ = E f'²;
    * max: τ = T ∫ f² φ Φ^{T-1} ds, γ = ∫ f'² φ Φ^{T-1} ds for increasing f, and the same with the
      distribution function of f(u) in place of Φ for any f;
    * average: τ = (E f² + (T-1)(E f)²)/T, γ = E f'²/T². Later steps see a Gaussian of that mean
      and variance.

    Both are rounded to twelve digits, fewer than the quadrature has, to be the same on every
    machine.
    """
    s, width, _ = _rule()
    distribution = _Distribution(values=s, weights=width * normal_density(s), slope_scale=1.0)
    for step in stage:
        if isinstance(step, Activation):
            distribution = distribution.activated(step)
        elif step.size > 1 and step.kind == "max":
            distribution = distribution.max_pooled(step.size)
        elif step.size > 1:
            distribution = distribution.average_pooled(step.size)
    tau = float(np.sum(distribution.weights * distribution.values**2))
    return _rounded(tau), _rounded(distribution.gradient_share())


def _rounded(value: float) -> float:
    return float(f"{value:.12g}")


@dataclasses.dataclass(frozen=True)
class _Distribution:
    """A random value v(s), with values and weights at the nodes, (nodes,) each.

    `slope_scale` is the standard deviation of the Gaussian that v is a function of, `share` the
    gradient share of the steps before it.
    """

    values: Array
    weights: Array
    slope_scale: float
    share: float = 1.0

    def activated(self, activation: Activation) -> "_Distribution":
        values = np.asarray(activation.function(self.values), np.float64)
        return dataclasses.replace(self, values=values)

    def max_pooled(self, size: int) -> "_Distribution":
        s, width, _ = _rule()
        density = width * normal_density(s)
        is_gaussian = np.array_equal(self.weights, density)
        if is_gaussian and np.all(np.diff(self.values) >= 0):
            weights = size * density * _distribution_at_nodes() ** (size - 1)
        else:
            weights = _maximum_weights(self.values, self.weights, size)
        return dataclasses.replace(self, weights=weights, share=self.share / size)

    def average_pooled(self, size: int) -> "_Distribution":
        s, width, _ = _rule()
        mean = float(np.sum(self.weights * self.values))
        variance = float(np.sum(self.weights * (self.values - mean) ** 2)) / size
        scale = math.sqrt(variance)
        return _Distribution(
            values=mean + scale * s,
            weights=width * normal_density(s),
            slope_scale=scale,
            share=self.gradient_share() / size**2,
        )

    def gradient_share(self) -> float:
        if self.slope_scale == 0.0:
            return 0.0
        slope = _derivative(self.values) / self.slope_scale
        return self.share * float(np.sum(self.weights * slope**2))


def _derivative(values: Array) -> Array:
    """dv/ds at the nodes."""
    _, _, matrix = _rule()
    return np.asarray(values.reshape(-1, _ORDER) @ matrix.T).ravel()


def _maximum_weights(values: Array, weights: Array, size: int) -> Array:
    """Node weights of the maximum of `size` draws: P(v is the maximum) = F(v)^T - F(v-)^T."""
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order])
    cumulated /= cumulated[-1]
    result = np.empty_like(weights)
    result[order] = np.diff(cumulated**size, prepend=0.0)
    return result


def _sigmoid(s: Array) -> Array:
    return 0.5 * (1 + np.tanh(s / 2))


def _softplus(s: Array) -> Array:
    return np.logaddexp(0.0, s)


def _elu(s: Array, alpha: float = 1.0) -> Array:
    return np.where(s > 0, s, alpha * np.expm1(np.minimum(s, 0.0)))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _gelu(s: Array) -> Array:
    return s * normal_distribution(s.ravel()).reshape(s.shape)


def _gelu_tanh(s: Array) -> Array:
    inner = math.sqrt(2 / math.pi) * (s + 0.044715 * s**3)
    return np.asarray(0.5 * s * (1 + np.tanh(inner)))


# Common activations, in float64 and equal on every backend. Other callables are evaluated as they
# are.
FUNCTIONS: dict[str, Function] = {
    "linear": lambda s: s,
    "relu": lambda s: np.maximum(s, 0.0),
    "relu6": lambda s: np.clip(s, 0.0, 6.0),
    "leaky_relu": lambda s: np.where(s > 0, s, 0.2 * s),
    "elu": _elu,
    "selu": lambda s: _SELU_SCALE * _elu(s, _SELU_ALPHA),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda s: s * _sigmoid(s),
    "mish": lambda s: s * np.tanh(_softplus(s)),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "softplus": _softplus,
    "softsign": lambda s: s / (1 + np.abs(s)),
    "exponential": np.exp,
    "hard_sigmoid": lambda s: np.clip(s / 6 + 0.5, 0.0, 1.0),
    "hard_silu": lambda s: s * np.clip(s / 6 + 0.5, 0.0, 1.0),
    "hard_tanh": lambda s: np.clip(s, -1.0, 1.0),
}


def named_activation(name: str) -> Activation | None:
    """The activation of that name in `FUNCTIONS`, or None."""
    function = FUNCTIONS.get(name)
    return None if function is None else Activation(name, function, (name,))
