"""`ops.dot_product_attention` on tensors of shape (batch, length, heads, size)."""

import math

import numpy as np

from keras_varinit.families.attention.masks import UnknownError, sight
from keras_varinit.maths.tokens import Attention, of_products, size_of
from keras_varinit.signals.constants import values_of
from keras_varinit.signals.layouts import fitting, signal_at, with_channel_axes
from keras_varinit.signals.narrowness import shared_width
from keras_varinit.signals.outcome import Gradient, Gradients, Outcome, Visit, added, unknown
from keras_varinit.signals.registry import follows_channel_axes, signal_rule
from keras_varinit.tracing.arguments import Input, named_arguments

_NAMES = ("query", "key", "value")

_HEADS = (-2, -1)


@follows_channel_axes
@signal_rule("DotProductAttention")
def _dot_product_attention(visit: Visit) -> Outcome:
    arguments = named_arguments(visit.call.node)
    if not all(isinstance(arguments.get(n), Input) for n in _NAMES):
        return unknown(visit, "it attends to constants")
    numbers = {n: arguments[n].number for n in _NAMES}
    reaches = [visit.reaches[n] for n in numbers.values()]
    if reaches[0] & reaches[1]:
        return unknown(visit, "its queries and keys depend on each other")
    if arguments.get("bias") is not None:
        return unknown(visit, "a bias of its logits is not modelled")
    sources = {n: visit.inputs[number] for n, number in numbers.items()}
    shapes = {n: visit.call.input_shapes[number] for n, number in numbers.items()}
    signals = {n: with_channel_axes(s, shapes[n], _HEADS) for n, s in sources.items()}
    size, value_size = (shapes[n][-1] or 1 for n in ("query", "value"))
    repeats = (shapes["query"][-2] or 1) // (shapes["key"][-2] or 1)
    scale = arguments.get("scale")
    factor = 1 / math.sqrt(size) if scale is None else values_of(scale)
    if factor is None:
        return unknown(visit, "its scale is not known")
    query, key, value = (signals[n].merged for n in _NAMES)
    variance = float(np.mean(np.square(factor)))
    logits = variance * size * query.second_moment * key.second_moment
    cap = getattr(visit.operation, "attn_logits_soft_cap", None)
    if cap is not None and not cap > 5 * math.sqrt(logits):
        return unknown(visit, "its logits are near their cap")
    try:
        pattern = sight(
            visit,
            {"attention_mask": arguments.get("mask")},
            size_of(query.axes),
            size_of(key.axes),
            causal=bool(visit.operation.is_causal),
        )
    except UnknownError as reason:
        return unknown(visit, str(reason))
    width = shared_width(visit.sources[numbers["key"]], visit.sources[numbers["value"]])
    if reaches[1] & reaches[2]:
        width = value_size
    products = of_products(variance, size)
    attention = Attention(query, key, value, pattern, products, value_size, width=width)
    channels = (shapes["query"][-2] or 1) * value_size
    output = signal_at([(channels, attention.mixed)], _HEADS, 4)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        results: list[Gradient | None] = [None] * len(visit.inputs)
        if gradient is None:
            return results
        by_name = attention.backward(gradient.parts[0], gradient.coherence)
        for name, number in numbers.items():
            second, coherence = by_name[name]
            # With grouped queries, several query heads read the same keys and values.
            factor = 1 if name == "query" else repeats
            inner = Gradient((second * factor,) * len(signals[name].parts), coherence)
            results[number] = added(results[number], fitting(inner, signals[name], sources[name]))
        return results

    return Outcome((output,), pullback)
