"""Attention and AdditiveAttention, the layers without kernels."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_varinit.families.attention.masks import UnknownError, sight
from keras_varinit.keras_private import own_variable
from keras_varinit.maths.attention import Logits, Tokens
from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.hermite import point_law
from keras_varinit.maths.patterns import Pattern
from keras_varinit.maths.quadrature import FUNCTIONS, Activation
from keras_varinit.maths.tokens import Attention, LogitsOf, of_products, size_of
from keras_varinit.maths.windows import Array
from keras_varinit.signals.outcome import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    added,
    alike,
    unknown,
)
from keras_varinit.signals.registry import layer_classes, signal_rule
from keras_varinit.tensors import view
from keras_varinit.tracing.arguments import Input, named_arguments
from keras_varinit.typing import Layer

# Logits by which one key is ahead of all others when it gets all weight.
_AHEAD = 6.0


@signal_rule(*layer_classes("Attention", "AdditiveAttention"))
def _attention(visit: Visit) -> Outcome:
    """Attention on `inputs=[query, value, key]`, without projections."""
    arguments = named_arguments(visit.call.node)
    sources = arguments["inputs"]
    if any(not isinstance(each, Input) for each in sources):
        return unknown(visit, "it attends to constants")
    numbers = [each.number for each in sources]
    query, value = numbers[:2]
    key = numbers[2] if len(numbers) > 2 else value
    try:
        return _Layer(visit, arguments, query, key, value).outcome()
    except UnknownError as reason:
        return unknown(visit, str(reason))


class _Layer:
    """One call of an attention layer; `query`, `key` and `value` are numbers of inputs."""

    def __init__(
        self, visit: Visit, arguments: Mapping[str, Any], query: int, key: int, value: int
    ) -> None:
        self.visit, self.numbers = visit, {"query": query, "key": key, "value": value}
        self.signals = {name: visit.inputs[n] for name, n in self.numbers.items()}
        ranks = [len(visit.call.input_shapes[n]) for n in self.numbers.values()]
        places = [s.channel_axis % r + 1 for s, r in zip(self.signals.values(), ranks, strict=True)]
        if places != ranks:
            raise UnknownError("its channels are not in the last dimension")
        parts = {name: s.merged for name, s in self.signals.items()}
        masks = arguments.get("mask") or [None, None]
        self.pattern = sight(
            visit,
            {"value_mask": masks[1]},
            size_of(parts["query"].axes),
            size_of(parts["key"].axes),
            causal=bool(arguments.get("use_causal_mask", False)),
        )
        tensors = [visit.call.node.inputs[n] for n in self.numbers.values()]
        self.on_itself = tensors[0] == tensors[1]
        reaches = [visit.reaches[n] for n in self.numbers.values()]
        if reaches[0] & reaches[1] and not self.on_itself:
            raise UnknownError("its queries and keys depend on each other")
        logits = self._logits(self.signals["query"].channels)
        channels = self.signals["value"].channels
        self.attention: Attention | None = None
        if self.on_itself and self._is_by_products():
            self._check_self(parts["query"])
            return
        kept = 1 - float(visit.operation.dropout)
        # If the keys are the values, the output is pulled towards the query.
        width = channels if reaches[1] & reaches[2] else math.inf
        self.attention = Attention(
            parts["query"],
            parts["key"],
            parts["value"],
            self.pattern,
            logits,
            channels,
            kept=kept,
            width=width,
        )

    def _is_by_products(self) -> bool:
        layer = self.visit.operation
        additive = isinstance(layer, keras.layers.AdditiveAttention)
        return not additive and layer.score_mode == "dot"

    def _logits(self, size: int) -> LogitsOf:
        layer = self.visit.operation
        scale = _values(layer, "scale")
        if self._is_by_products():
            return of_products(float(np.mean(scale**2)), size)
        if isinstance(layer, keras.layers.AdditiveAttention):
            return _of_sums(float(np.mean(scale**2)), 1.0, size)
        outer = _values(layer, "concat_score_weight")
        return _of_sums(float(np.mean(outer**2)), float(np.mean(scale)), size)

    def _check_self(self, moments: Moments) -> None:
        """Checks that the logit of a token with itself, d·E x², far exceeds all others."""
        scale = float(np.mean(_values(self.visit.operation, "scale")))
        size = self.signals["query"].channels
        own = max(moments.second_moment - moments.pair_moment, 0.0)
        spread = abs(scale) * math.sqrt(size * moments.second_moment * own)
        others = spread * math.sqrt(2 * math.log(max(self.pattern.keys, 2)))
        if not scale * size * own - others - spread > _AHEAD:
            raise UnknownError("its queries are its keys, with no kernel between them")

    def outcome(self) -> Outcome:
        """The mixed values and, if requested, the attention weights."""
        value = self.signals["value"]
        if self.attention is None:
            output = value.each(Moments.copied)
            weights = (1 / self.pattern.keys,) * 2
        else:
            output = Signal(((value.channels, self.attention.mixed),), -1)
            weights = self.attention.weights()
        outputs = [output]
        for shape in self.visit.call.output_shapes[1:]:
            outputs.append(alike(shape, -1, *weights, weights[0] ** 2))
        return Outcome(tuple(outputs), self._pullback)

    def _pullback(self, gradients: Gradients) -> Gradients:
        results: list[Gradient | None] = [None] * len(self.visit.inputs)
        gradient = gradients[0]
        if any(g is not None for g in gradients[1:]):
            lost = [(np.full(s.merged.mean.shape, np.nan), s) for s in self.visit.inputs]
            return [Gradient((nan,) * len(s.parts)) for nan, s in lost]
        if gradient is None:
            return results
        if self.attention is None:
            results[self.numbers["value"]] = gradient
            return results
        by_input = self.attention.backward(gradient.parts[0], gradient.coherence)
        for name, number in self.numbers.items():
            second, coherence = by_input[name]
            parts = (second,) * len(self.signals[name].parts)
            results[number] = added(results[number], Gradient(parts, coherence))
        return results


def _values(layer: Layer, name: str) -> Array:
    variable = own_variable(layer, name)
    return np.ones(1) if variable is None else np.asarray(view(variable), np.float64)


def _of_sums(outer: float, inner: float, size: int) -> LogitsOf:
    """Logits Σ w·tanh(a·(q + k)) over `size` entries, with `outer` = E w² and `inner` = a.

    Their variance along a row is proportional to E tanh² - E tanh tanh' for two keys of a query.
    """
    activation = Activation(
        f"tanh of {inner:g}", lambda s: FUNCTIONS["tanh"](inner * s), ("tanh", inner)
    )

    def logits(query: Tokens, key: Tokens, pattern: Pattern) -> Logits:
        second = query.mean_second + key.mean_second
        law = point_law(activation, 0.0, float(f"{math.sqrt(second):.6g}"))
        rho = (query.mean_second + key.mean_pair) / second if second > 0 else 1.0
        own = law.second - float(law.product(np.asarray(rho)))
        slope = law.squared_slope - law.slope_product(rho)
        rows = np.ones(pattern.rows)
        return Logits(
            outer * size * max(own, 0.0) * rows,
            outer * max(slope, 0.0) * rows,
            outer * law.squared_slope * rows,
        )

    return logits
