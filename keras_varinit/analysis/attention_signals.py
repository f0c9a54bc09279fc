"""The engine's rule of attention at initialization.

Logits l_pq = q_p·k_q/√d are Gaussian over the weights; what keys have in common shifts all logits
of a row and cancels in the softmax. So a row has variance σ² = E q²·(E k² - E k k'), its weights
A_pq have E Σ_q A² = S, and the output mixes values: E o² = S·(E v² - E v v') + E v v'. Pairs of
outputs here are positions of one example, which have more in common than two examples.
"""

import math
from typing import Any

import numpy as np

from keras_varinit.analysis.moment_maps import uniform
from keras_varinit.analysis.rules import Kernel, Weights, layer_classes
from keras_varinit.analysis.signals import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    layout,
    signal_rule,
)
from keras_varinit.analysis.weight_signals import Weighing, general_kernels, in_place

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(48)
_WEIGHTS = _WEIGHTS / math.sqrt(2 * math.pi)


def concentration(variance: float, keys: float, power: int = 2) -> float:
    """E Σ_q A_q^n, n = `power`, of a softmax over `keys` independent logits N(0, variance).

    With 1/Sⁿ = ∫ tⁿ⁻¹ e^{-tS} dt / (n-1)!, S = Σ e^l, it is
    T·∫ tⁿ⁻¹ E[e^{nl} e^{-t e^l}] (E e^{-t e^l})^{T-1} dt / (n-1)!.
    """
    if not math.isfinite(keys):
        return 0.0
    if keys <= 1 or variance <= 0:
        return max(keys, 1.0) ** (1 - power)
    powers = np.exp(math.sqrt(variance) * _NODES)
    logs = np.linspace(-30.0, 12.0, 1200)  # t on a logarithmic scale, about 1/keys
    t = np.exp(logs) / math.sqrt(keys)
    decay = np.exp(-t[:, None] * powers[None, :])
    one = decay @ _WEIGHTS
    raised = (decay * powers**power) @ _WEIGHTS
    integrand = t**power * raised * np.maximum(one, 0.0) ** (keys - 1) / math.factorial(power - 1)
    result = keys * float(np.sum(integrand) * (logs[1] - logs[0]))
    return min(max(result, keys ** (1 - power)), 1.0)


@signal_rule(*layer_classes("MultiHeadAttention", "GroupQueryAttention"))
def _attention(visit: Visit) -> Outcome:
    role = visit.role
    if not isinstance(role, Weights) or len(role.kernels) != 4 or len(visit.inputs) < 2:
        return general_kernels(visit)
    layer = visit.operation
    kernels = dict(zip(("query", "key", "value", "output"), _ordered(layer, role), strict=True))
    query, value = visit.inputs[0], visit.inputs[1]
    key = visit.inputs[2] if len(visit.inputs) > 2 else value
    sources = {"query": query, "key": key, "value": value}
    projected: dict[str, tuple[Weighing, Signal]] = {}
    for name, source in sources.items():
        unit = source.merged.weighted(in_place(source.axes), kernels[name].fans.fan_in)
        channels = round(kernels[name].fans.fan_out)
        weighing = Weighing(visit, kernels[name], [(channels, unit)])
        projected[name] = (weighing, weighing.output((0.0, 0.0), -1))
    q, k, v = (projected[name][1].merged for name in ("query", "key", "value"))
    keys = math.prod(math.inf if a.size is None else a.size for a in value.axes)
    logits = q.second_moment * max(k.second_moment - k.pair_moment, 0.0)
    share = concentration(logits, keys) if math.isfinite(logits) else math.nan
    mixed_second = share * (v.second_moment - v.pair_moment) + v.pair_moment
    axes = query.axes
    own = max(v.second_moment - v.pair_moment, 0.0)
    # Two positions mix the same values, and more alike the more alike their queries are.
    alike_rows = math.exp(min(q.pair_moment * max(k.second_moment - k.pair_moment, 0.0), logits))
    pair = v.pair_moment + own * min(alike_rows / keys, share)
    mixed = uniform(axes, 0.0, mixed_second, pair)
    fan_in = kernels["output"].fans.fan_in
    _, channels = layout(visit.output_shape, -1)
    last = Weighing(visit, kernels["output"], [(channels, mixed.scaled(fan_in))])
    output = last.output((0.0, 0.0), -1)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        last.came_back(gradient, output)
        if gradient is None:
            return [None] * len(visit.inputs)
        coherence = gradient.coherence
        g = gradient.second_moment(output) * last.variance * channels
        together = share + coherence * min(max(alike_rows - 1 / keys, 0.0), share * keys)
        cubed = concentration(logits, keys, 3)
        slopes = max(share - 2 * cubed + share**2, 0.0)
        spread = slopes * g * (v.second_moment - v.pair_moment)
        seconds = {
            "value": (g * together, coherence / together if together else 0.0),
            "query": (spread * (k.second_moment - k.pair_moment), 0.0),
            "key": (spread * q.second_moment, 0.0),
        }
        results: list[Gradient | None] = [None] * len(visit.inputs)
        for name, (second, coherent) in seconds.items():
            weighing, signal = projected[name]
            full = Gradient((np.full_like(signal.parts[0][1].mean, second),), coherent)
            weighing.came_back(full, signal)
            index = {"query": 0, "value": 1, "key": 2 if len(visit.inputs) > 2 else 1}[name]
            back = second * weighing.variance * kernels[name].fans.fan_out
            source = sources[name]
            parts = tuple(np.full_like(m.mean, back) for _, m in source.parts)
            results[index] = _sum(results[index], Gradient(parts, min(coherent, 1.0)))
        return results

    return Outcome((output,) * len(visit.call.output_shapes), pullback)


def _ordered(layer: Any, role: Weights) -> list[Kernel]:
    """Query, key, value and output kernels."""
    by_variable = {id(k.variable): k for k in role.kernels}
    parts = [
        getattr(layer, f"_{name}_dense", None) or getattr(layer, f"{name}_dense")
        for name in ("query", "key", "value", "output")
    ]
    return [by_variable[id(part.kernel)] for part in parts]


def _sum(first: Gradient | None, second: Gradient) -> Gradient:
    if first is None:
        return second
    return Gradient(
        tuple(a + b for a, b in zip(first.parts, second.parts, strict=True)),
        max(first.coherence, second.coherence),
    )
