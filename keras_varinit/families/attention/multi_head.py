"""MultiHeadAttention and GroupQueryAttention; the mathematics is in `maths.attention`."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_varinit.families.activations import after_activation
from keras_varinit.families.attention.masks import UnknownError, sight
from keras_varinit.families.kernels import Weighing, kernel_of, weight_rule
from keras_varinit.keras_private import (
    ATTENTION_METHODS,
    Shape,
    is_keras_class,
    layers_of,
    own_variable,
)
from keras_varinit.maths import fans
from keras_varinit.maths.algebra import multiplied
from keras_varinit.maths.covariance import uniform
from keras_varinit.maths.quadrature import FUNCTIONS, Activation
from keras_varinit.maths.tokens import Attention, of_products, size_of
from keras_varinit.maths.windows import Array, windows_in_place
from keras_varinit.signals.constants import moments_of_variable
from keras_varinit.signals.outcome import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    added,
    alike,
    layout,
)
from keras_varinit.signals.registry import layer_classes, signal_rule
from keras_varinit.signals.roles import Call, Kernel, Role, Weights
from keras_varinit.tracing.arguments import Input, named_arguments
from keras_varinit.typing import Layer, Operation


@weight_rule(*layer_classes("MultiHeadAttention", "GroupQueryAttention"))
def _attention_role(call: Call) -> Role:
    """The kernels of query, key and value at level 0, of the output projection at level 1."""
    kernels = []
    for part in layers_of(call.operation):
        if isinstance(part, keras.layers.EinsumDense):
            variable, shape = kernel_of(part)
            level = 1 if part.name == "attention_output" else 0
            kernels.append(Kernel(variable, fans.einsum(part.equation, shape), level))
    return Weights(tuple(kernels))


_SIGMOID = Activation("sigmoid", FUNCTIONS["sigmoid"], ("sigmoid",))

_SOURCES = {"query": "query", "gate": "query", "key": "key", "value": "value"}

_LAYERS = layer_classes("MultiHeadAttention", "GroupQueryAttention")


def is_customized(layer: Operation) -> bool:
    """Whether a layer derives from Keras's attention layers and computes attention itself."""
    return isinstance(layer, _LAYERS) and _computes_attention(layer)


@signal_rule(*layer_classes("MultiHeadAttention", "GroupQueryAttention"))
def _attention(visit: Visit) -> Outcome:
    """The projections of query, key and value, attention, and the output projection."""
    layer, role = visit.operation, visit.role
    if not isinstance(role, Weights):
        raise TypeError("the rule expects a call whose role is `Weights`")
    arguments = named_arguments(visit.call.node)
    parts = _parts(layer, role)
    projected = {
        name: _Projected(visit, kernel, bias, _source(arguments, _SOURCES[name]))
        for name, (kernel, bias) in parts.items()
        if name in _SOURCES
    }
    core: Attention | None = None
    try:
        core = _core(visit, arguments, projected)
    except UnknownError as reason:
        visit.note(f"{layer.name}: {reason}; the scale of its output is not known")
    return _Layer(visit, projected, parts["attention_output"], core).outcome()


def _parts(layer: Layer, role: Weights) -> dict[str, tuple[Kernel, tuple[float, float]]]:
    """The kernel and (mean, mean square) of the bias, by the name of the inner layer."""
    kernels = {id(k.variable): k for k in role.kernels}
    return {
        part.name: (kernels[id(part.kernel)], moments_of_variable(part, "bias"))
        for part in layers_of(layer)
        if isinstance(part, keras.layers.EinsumDense)
    }


def _source(arguments: Mapping[str, Any], name: str) -> Any:
    """The argument for query, key or value: an `Input`, or a constant such as trained queries."""
    argument = arguments.get(name)
    return arguments.get("value") if argument is None and name == "key" else argument


def _of_constant(values: Any) -> Signal:
    """The signal of an array or variable, averaged over its entries and pairs of positions."""
    array = np.asarray(keras.ops.convert_to_numpy(values), np.float64)
    axes, channels = layout(array.shape, -1)
    rows = array.reshape(array.shape[0], -1, channels)
    count, second = rows.shape[1], float(np.mean(rows**2))
    whole = float(np.mean(rows.mean(axis=1) ** 2))
    pair = (whole * count - second) / (count - 1) if count > 1 else second
    return Signal(((channels, uniform(axes, float(rows.mean()), second, pair)),), -1)


def _core(
    visit: Visit, arguments: Mapping[str, Any], projected: "Mapping[str, _Projected]"
) -> Attention:
    layer = visit.operation
    if is_customized(layer):
        raise UnknownError("its class computes attention in its own way")
    query, key, value = (projected[n].output.merged for n in ("query", "key", "value"))
    if query.common is not None or key.common is not None:
        raise UnknownError("queries or keys have a factor in common that varies")
    axes = getattr(layer, "attention_axes", None)
    attended = list(range(len(query.axes))) if axes is None else [a - 1 for a in axes]
    if len(query.axes) != len(value.axes):
        raise UnknownError("queries and values have different numbers of axes")
    pattern = sight(
        visit,
        arguments,
        size_of(tuple(query.axes[n] for n in attended)),
        size_of(tuple(value.axes[n] for n in attended)),
        causal=bool(arguments.get("use_causal_mask", False)),
        window=layer.get_config().get("sliding_window"),
    )
    size = layer.head_dim if hasattr(layer, "head_dim") else layer.key_dim
    value_size = layer.head_dim if hasattr(layer, "head_dim") else layer.value_dim
    logits, kept = of_products(1 / size, size), 1 - float(layer.dropout)
    sources = [projected[n].source for n in ("key", "value")]
    width = math.inf
    number = projected["key"].number
    if sources[0] is sources[1] and number is not None and visit.narrowness:
        width = 1 / max(visit.narrowness[number], 1e-12)
    return Attention(query, key, value, pattern, logits, value_size, attended, kept, width)


def _in_last(signal: Signal, shape: Shape) -> Signal:
    """The signal with its channels in the last dimension."""
    if signal.channel_axis % len(shape) == len(shape) - 1:
        return signal
    axes, channels = layout(shape, -1)
    return Signal(((channels, signal.merged.spread_over(axes)),), -1)


class _Projected:
    """The projection of a source to query, key, value or gate."""

    def __init__(
        self, visit: Visit, kernel: Kernel, bias: tuple[float, float], source: Any
    ) -> None:
        self.number = source.number if isinstance(source, Input) else None
        self.kernel = kernel
        if self.number is None:
            self.source = _of_constant(source)
        else:
            self.source = _in_last(visit.inputs[self.number], visit.call.input_shapes[self.number])
        merged = self.source.merged
        unit = merged.weighted(windows_in_place(merged.axes), kernel.fans.fan_in)
        channels = round(kernel.fans.fan_out)
        self.weighing = Weighing(visit, kernel, [(channels, unit)])
        self.output = self.weighing.output(bias, -1)

    def back(self, second: Array, coherence: float) -> Gradient:
        """The gradient of the source; `second` is E g² of the output by class of position."""
        self.weighing.came_back(Gradient((second,), coherence), self.output)
        factor = self.weighing.variance * self.kernel.fans.fan_out
        return Gradient((second * factor,) * len(self.source.parts), coherence)


class _Layer:
    """One call of a multi-head attention layer; `core` is None if its attention is unknown."""

    def __init__(
        self,
        visit: Visit,
        projected: Mapping[str, _Projected],
        last: tuple[Kernel, tuple[float, float]],
        core: Attention | None,
    ) -> None:
        self.visit, self.projected, self.core = visit, projected, core
        layer = visit.operation
        self.repeats = 1
        if hasattr(layer, "num_key_value_heads"):
            self.repeats = layer.num_query_heads // layer.num_key_value_heads
        axes, self.channels = layout(visit.output_shape, -1)
        query = projected["query"].output.merged
        self.mixed = query.scaled(np.nan) if core is None else core.mixed
        self.gate: Outcome | None = None
        read = self.mixed
        if "gate" in projected:
            self.gate = after_activation(projected["gate"].output, _SIGMOID)
            read = multiplied(self.mixed, self.gate.outputs[0].merged)
        kernel, bias = last
        unit = read.scaled(kernel.fans.fan_in)
        if unit.axes != axes:
            unit = unit.spread_over(axes)
        self.last = Weighing(visit, kernel, [(self.channels, unit)])
        self.output = self.last.output(bias, -1)

    def outcome(self) -> Outcome:
        """The output and, if requested, the attention weights, with the pullback."""
        outputs = [self.output]
        for shape in self.visit.call.output_shapes[1:]:
            outputs.append(self._weights(shape))
        return Outcome(tuple(outputs), self._pullback)

    def _weights(self, shape: tuple[int | None, ...]) -> Signal:
        if self.core is None:
            return alike(shape, 1, *[float("nan")] * 3)
        mean, second = self.core.weights()
        return alike(shape, 1, mean, second, mean**2)

    def _pullback(self, gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        self.last.came_back(gradient, self.output)
        results: list[Gradient | None] = [None] * len(self.visit.inputs)
        if all(g is None for g in gradients):
            return results
        for name, (second, coherence) in self._parts_back(gradients).items():
            part = self.projected[name]
            back = part.back(second, coherence)
            if part.number is not None:
                results[part.number] = added(results[part.number], back)
        return results

    def _parts_back(self, gradients: Gradients) -> dict[str, tuple[Array, float]]:
        """E g² and coherence at the outputs of the projections."""
        gradient, mixed = gradients[0], self.mixed
        shapes = {n: p.output.parts[0][1].mean.shape for n, p in self.projected.items()}
        lost = {n: (np.full(shape, np.nan), 0.0) for n, shape in shapes.items()}
        # Gradients of the returned attention weights are not modelled.
        if self.core is None or gradient is None or any(g is not None for g in gradients[1:]):
            return lost
        factor = self.last.variance * self.channels
        g = np.broadcast_to(gradient.second_moment(self.output) * factor, mixed.mean.shape)
        if gradient.parts[0].shape == mixed.mean.shape:
            g = gradient.parts[0] * factor
        coherence, by_name = gradient.coherence, {}
        if self.gate is not None:
            open_ = self.gate.outputs[0].merged
            back = self.gate.pullback((Gradient((g * mixed.second,), 0.0),))[0]
            by_name["gate"] = (lost["gate"][0] if back is None else back.parts[0], 0.0)
            g = g * open_.second
            coherence *= min(open_.pair_moment / open_.second_moment, 1.0)
        by_name |= self.core.backward(g, coherence)
        del by_name["logits"]
        for name in ("key", "value"):
            # The query heads of a group are followed by independent kernels.
            by_name[name] = (by_name[name][0] * self.repeats, by_name[name][1])
        return by_name


def parts_of(layer: Layer) -> dict[int, tuple[str, int, int, int]]:
    """The parts that the kernels of an attention layer play, by the `id` of the variable.

    Returns:
        (role, number of query heads, number of key and value heads, size of a head).
    """
    if not isinstance(layer, _LAYERS):
        return {}
    if hasattr(layer, "num_query_heads"):
        heads, kv_heads = layer.num_query_heads, layer.num_key_value_heads
        size = value_size = layer.head_dim
    else:
        heads = kv_heads = layer.num_heads
        size, value_size = layer.key_dim, layer.value_dim
    sizes = {"query": size, "key": size, "value": value_size, "attention_output": value_size}
    return {
        id(variable): (part.name, heads, kv_heads, sizes[part.name])
        for part in layers_of(layer)
        for variable in [own_variable(part, "kernel")]
        if part.name in sizes and variable is not None
    }


def _computes_attention(layer: Operation) -> bool:
    """Whether a subclass of one of Keras's attention layers overrides how attention is computed."""
    for cls in type(layer).__mro__:
        if is_keras_class(cls):
            return False
        if ATTENTION_METHODS & vars(cls).keys():
            return True
    return False
