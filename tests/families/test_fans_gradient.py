"""Fans of every kind of kernel, measured on real layers: forward, and by real gradients.

With kernel variance 1/(mean fan-in), unit white noise at the input gives the linear output unit
second moment; with 1/(mean fan-out), unit white noise as the gradient of the linear output gives
the input's gradient unit second moment. Both are means over all entries, borders included. Only
the counts under test enter; the standard error is that of the mean over independent draws of
kernel and noise.

Where a layer is not linear in its input, its linear part is measured: recurrent cells with linear
activations and gates held constant, one step; attention through its projections; a look-up table
on one-hot rows, as the matrix it is.
"""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from keras_varinit import keras_private
from tests.gradients import vector_jacobian

pytestmark = pytest.mark.not_on("jax", reason="JAX would compile every draw again")

L = keras.layers
DRAWS = 20
TOLERANCE = 4.0  # standard errors
LAST = keras.backend.backend() == "tensorflow"  # its CPU kernels want channels last


def batch(shape):
    """As many inputs of a shape as make the noise's own error small."""
    return max(4, 1000 // math.prod(shape))


def white(rng, shape):
    return rng.standard_normal((batch(shape), *shape)).astype("float32")


class Linear:
    """The linear map of one kernel: `function`, by default the model, of inputs of `shape`."""

    def __init__(self, model, shape, function=None, variable=None):
        analysis = kv.analyze(model)
        if variable is None:
            (variable,) = [v for v in model.weights if analysis.context_of(v) is not None]
        self.shape, self.function = shape, function or model
        self.variable, self.context = variable, analysis.context_of(variable)
        self.noise = white
        assert analysis.unknown == ()
        # Counts are tested here, also of what the engine does not follow.
        assert all("not known" in note for note in analysis.notes)
        if not self.context.spatial_axes:  # no boundary, so the counts are the same everywhere
            means = self.context.mean_fan_in, self.context.mean_fan_out
            assert (self.context.fan_in, self.context.fan_out) == pytest.approx(means)

    def draw(self, rng, mean_fan):
        kernel = rng.standard_normal(self.variable.shape) / np.sqrt(mean_fan)
        self.variable.assign(kernel.astype("float32"))

    def forward(self, rng):
        """Second moment of the output for white noise."""
        self.draw(rng, self.context.mean_fan_in)
        x = self.noise(rng, self.shape)
        u = np.asarray(ops.convert_to_numpy(self.function(ops.convert_to_tensor(x))), np.float64)
        self.output_shape = u.shape
        return np.mean(u**2)

    def backward(self, rng):
        """Second moment of the input's gradient for white noise as the output's."""
        self.draw(rng, self.context.mean_fan_out)
        x = self.noise(rng, self.shape)
        g = rng.standard_normal(self.output_shape).astype("float32")
        return np.mean(vector_jacobian(self.function, x, g) ** 2)


def single(shape, layer):
    """A layer that is linear itself, in a model of its own."""
    return Linear(keras.Sequential([keras.Input(shape), layer]), shape)


def dense(shape):
    return lambda: single(shape, L.Dense(32, use_bias=False))


def einsum(equation, shape, output):
    return lambda: single(shape, L.EinsumDense(equation, output))


def conv(rank, shape, **options):
    return lambda: single(shape, getattr(L, f"Conv{rank}D")(16, 3, **options))


def depthwise(rank, shape, **options):
    cls = getattr(L, f"DepthwiseConv{rank}D")
    return lambda: single(shape, cls(3, depth_multiplier=2, **options))


def transpose(rank, shape, size=3, **options):
    return lambda: single(shape, getattr(L, f"Conv{rank}DTranspose")(16, size, **options))


def padded(padding, shape, make):
    layers = [L.ZeroPadding2D(padding), make()]
    return lambda: Linear(keras.Sequential([keras.Input(shape), *layers]), shape)


def time_distributed():
    return single((3, 6, 5, 8), L.TimeDistributed(L.Conv2D(16, 3, padding="same", strides=2)))


def embedding():
    """Rows of the identity select rows of the table, as the layer does."""
    layer = L.Embedding(48, 64)
    model = keras.Sequential([keras.Input((5,)), layer])
    identity = np.eye(48, dtype="float32")

    def select(x):
        return ops.matmul(x, layer.embeddings)

    rows = [ops.convert_to_numpy(v) for v in (layer(np.arange(48)), select(identity))]
    np.testing.assert_allclose(*rows, rtol=1e-6)
    found = Linear(model, (48,), select)
    found.noise = lambda rng, shape: identity[rng.integers(48, size=batch(shape))]
    return found


def separable(rank, kernel, **options):
    """One of the two kernels; the other keeps every entry as it is."""

    def make():
        wide = 2 if kernel == "depthwise" else 1
        cls, shape = getattr(L, f"SeparableConv{rank}D"), (*(7, 6)[:rank], 24)
        layer = cls(24 * wide, 3, padding="same", depth_multiplier=wide, **options)
        model = keras.Sequential([keras.Input(shape), layer])
        if kernel == "depthwise":
            identity = np.eye(48, dtype="float32")
            layer.pointwise_kernel.assign(identity.reshape(layer.pointwise_kernel.shape))
            return Linear(model, shape, variable=layer.depthwise_kernel)
        centre = np.zeros(layer.depthwise_kernel.shape, "float32")
        centre[(1,) * rank] = 1.0
        layer.depthwise_kernel.assign(centre)
        return Linear(model, shape, variable=layer.pointwise_kernel)

    return make


def held(value):
    """An activation that holds a gate at a value."""
    return lambda x: ops.full_like(x, value)


# Options that hold the gates, and the number of states. A GRU with both gates at ½ has
# h' = h/2 + (x·W + h·U/2)/2; an LSTM with open gates and an empty cell has h' = x·W + h·U.
CELLS = {
    "SimpleRNN": ({}, 1),
    "LSTM": ({"recurrent_activation": held(1.0)}, 2),
    "GRU": ({"recurrent_activation": held(0.5)}, 1),
}


def recurrent(kind, kernel, *, bidirectional=False):
    def make():
        options, states = CELLS[kind]
        layer = getattr(L, kind)(32, activation="linear", **options)
        both = L.Bidirectional(layer) if bidirectional else layer
        inputs = keras.Input((3, 24))
        model = keras.Model(inputs, both(inputs))
        cell = both.backward_layer.cell if bidirectional else layer.cell

        def step(x):
            nothing = ops.zeros((x.shape[0], 32))
            if kernel == "kernel":
                new = cell(x, [nothing] * states)[0]
                return 2 * new if kind == "GRU" else new
            new = cell(ops.zeros((x.shape[0], 24)), [x, *[nothing] * (states - 1)])[0]
            return 4 * new - 2 * x if kind == "GRU" else new

        shape = (24,) if kernel == "kernel" else (32,)
        return Linear(model, shape, step, getattr(cell, kernel))

    return make


def conv_lstm(rank, kernel, **options):
    """One step from an empty cell with open gates."""

    def make():
        size = (6, 5)[:rank]
        cls = getattr(L, f"ConvLSTM{rank}D")
        layer = cls(12, 3, activation="linear", recurrent_activation=held(1.0), **options)
        inputs = keras.Input((2, *size, 8))
        model = keras.Model(inputs, layer(inputs))
        outputs = tuple(model.output_shape[-rank - 1 :])

        def step(x):
            nothing = ops.zeros((x.shape[0], *outputs))
            if kernel == "kernel":
                return layer.cell(x, [nothing, nothing])[0]
            return layer.cell(ops.zeros((x.shape[0], *size, 8)), [x, nothing])[0]

        shape = (*size, 8) if kernel == "kernel" else outputs
        return Linear(model, shape, step, getattr(layer.cell, kernel))

    return make


def attention(make_layer, part):
    """One projection of sequences of 48 channels; the output's reads four heads of six."""

    def make():
        layer, query, value = make_layer(), keras.Input((5, 48)), keras.Input((6, 48))
        model = keras.Model([query, value], layer(query, value))
        projection = next(each for each in keras_private.layers_of(layer) if each.name == part)
        shape = (5, 4, 6) if part == "attention_output" else (5, 48)
        return Linear(model, shape, projection, projection.kernel)

    return make


def multi_head():
    return L.MultiHeadAttention(4, 8, value_dim=6)


def grouped_query():
    return L.GroupQueryAttention(6, 4, 2)


class Product(L.Layer):
    """A raw operation with a weight of the layer."""

    def __init__(self, operation, kernel_shape):
        super().__init__()
        self.operation, self.kernel_shape = operation, kernel_shape

    def build(self, shape):
        self.w = self.add_weight(shape=self.kernel_shape, name="w")

    def call(self, x):
        return self.operation(x, self.w)


def raw(operation, shape, kernel_shape):
    return lambda: single(shape, Product(operation, kernel_shape))


def strided(x, w):
    return ops.conv(x, w, strides=2, padding="same", data_format="channels_last")


def zeros_then_conv(x, w):
    x = ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)))
    return ops.conv(x, w, padding="valid", data_format="channels_last")


SAME = {"padding": "same"}
CASES = {
    "dense": dense((24,)),
    "dense on a sequence": dense((5, 24)),
    "einsum, two kept axes": einsum("abc,cde->abde", (5, 24), (None, 4, 8)),
    "einsum, two summed axes": einsum("abcd,cde->abe", (5, 4, 6), (None, 32)),
    "einsum, kernel transposed": einsum("abc,dc->abd", (5, 24), (None, 32)),
    "einsum, a kernel per position": einsum("abc,bcd->abd", (5, 24), (5, 32)),
    "einsum, positions summed": einsum("abc,cd->ad", (5, 48), (64,)),
    "einsum, positions summed by the kernel": einsum("abc,bcd->ad", (5, 12), (32,)),
    "embedding": embedding,
    "conv1d strided": conv(1, (13, 8), strides=2, **SAME),
    "conv1d causal, dilated": conv(1, (12, 8), padding="causal", dilation_rate=3),
    "conv1d grouped": conv(1, (9, 32), groups=4, **SAME),
    "conv2d valid": conv(2, (6, 5, 8)),
    "conv2d same on a 2x2 map": conv(2, (2, 2, 8), **SAME),
    "conv2d strided": conv(2, (7, 8, 8), strides=2, **SAME),
    "conv2d dilated": conv(2, (7, 6, 8), dilation_rate=2, **SAME),
    "conv2d grouped, strided": conv(2, (6, 7, 16), groups=4, strides=2, **SAME),
    "conv2d behind zeros": padded(((0, 2), (1, 1)), (6, 6, 8), lambda: L.Conv2D(16, 3, strides=2)),
    "conv3d strided": conv(3, (5, 4, 5, 6), strides=2, **SAME),
    "depthwise1d strided": depthwise(1, (13, 48), strides=2, **SAME),
    "depthwise2d": depthwise(2, (4, 5, 16), **SAME),
    "depthwise2d strided": depthwise(2, (7, 8, 16), strides=2, **SAME),
    "depthwise2d dilated": depthwise(2, (7, 6, 16), dilation_rate=2, **SAME),
    "separable1d depthwise": separable(1, "depthwise"),
    "separable1d pointwise": separable(1, "pointwise"),
    "separable2d depthwise, strided": separable(2, "depthwise", strides=2),
    "separable2d pointwise": separable(2, "pointwise"),
    "transpose1d": transpose(1, (7, 8), strides=2, **SAME),
    "transpose2d valid, strided": transpose(2, (4, 5, 8), strides=2),
    "transpose2d same, strided": transpose(2, (4, 5, 8), strides=2, **SAME),
    "transpose2d same": transpose(2, (3, 4, 8), **SAME),
    "transpose2d same, size 5": transpose(2, (3, 3, 8), 5, strides=2, **SAME),
    "transpose2d, stride above size": transpose(2, (4, 4, 8), 2, strides=3, **SAME),
    "transpose2d dilated": transpose(2, (4, 5, 8), dilation_rate=2),
    "transpose3d": transpose(3, (3, 2, 3, 6), strides=2, **SAME),
    "simple rnn": recurrent("SimpleRNN", "kernel"),
    "simple rnn, recurrent": recurrent("SimpleRNN", "recurrent_kernel"),
    "lstm": recurrent("LSTM", "kernel"),
    "lstm, recurrent": recurrent("LSTM", "recurrent_kernel"),
    "gru": recurrent("GRU", "kernel"),
    "gru, recurrent": recurrent("GRU", "recurrent_kernel"),
    "bidirectional": recurrent("SimpleRNN", "kernel", bidirectional=True),
    "bidirectional, recurrent": recurrent("SimpleRNN", "recurrent_kernel", bidirectional=True),
    "conv lstm 1d": conv_lstm(1, "kernel"),
    "conv lstm 2d": conv_lstm(2, "kernel", strides=2, **SAME),
    "conv lstm 2d, recurrent": conv_lstm(2, "recurrent_kernel", **SAME),
    "conv lstm 2d valid, recurrent": conv_lstm(2, "recurrent_kernel"),
    "conv lstm 2d sequence, recurrent": conv_lstm(2, "recurrent_kernel", return_sequences=True),
    "time distributed": time_distributed,
    "attention query": attention(multi_head, "query"),
    "attention key": attention(multi_head, "key"),
    "attention value": attention(multi_head, "value"),
    "attention output": attention(multi_head, "attention_output"),
    "grouped query": attention(grouped_query, "query"),
    "grouped key": attention(grouped_query, "key"),
    "grouped output": attention(grouped_query, "attention_output"),
    "raw matmul": raw(ops.matmul, (5, 24), (24, 32)),
    "raw tensordot": raw(lambda x, w: ops.tensordot(x, w, axes=1), (5, 24), (24, 32)),
    "raw tensordot, last axis": raw(
        lambda x, w: ops.tensordot(x, w, axes=[[2], [1]]), (5, 24), (32, 24)
    ),
    "raw einsum": raw(lambda x, w: ops.einsum("abc,dc->abd", x, w), (5, 24), (32, 24)),
    "raw einsum, kernel first": raw(
        lambda x, w: ops.einsum("dc,abc->abd", w, x), (5, 24), (32, 24)
    ),
    "raw conv": raw(strided, (7, 6, 8), (3, 3, 8, 16)),
    "raw conv behind zeros": raw(zeros_then_conv, (5, 5, 8), (3, 3, 8, 16)),
}
FIRST = {"data_format": "channels_first"}
CHANNELS_FIRST = {
    "conv1d": conv(1, (8, 13), strides=2, **SAME, **FIRST),
    "conv2d": conv(2, (8, 7, 6), strides=2, **SAME, **FIRST),
    "conv3d": conv(3, (6, 5, 4, 5), strides=2, **SAME, **FIRST),
    "depthwise1d": depthwise(1, (48, 13), strides=2, **SAME, **FIRST),
    "depthwise2d": depthwise(2, (16, 7, 6), **SAME, **FIRST),
    "transpose1d": transpose(1, (8, 7), strides=2, **SAME, **FIRST),
    "transpose2d": transpose(2, (8, 4, 5), strides=2, **SAME, **FIRST),
    "transpose3d": transpose(3, (6, 3, 2, 3), strides=2, **SAME, **FIRST),
}


def assert_one(values):
    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    assert error < 0.03, f"the measurement is too coarse to say anything: {error:.3f}"
    assert abs(mean - 1) < TOLERANCE * error, f"{mean:.3f} ± {error:.3f}"


def check(make):
    linear, rng = make(), np.random.default_rng(0)
    assert_one([linear.forward(rng) for _ in range(DRAWS)])
    assert_one([linear.backward(rng) for _ in range(DRAWS)])


@pytest.mark.parametrize("case", CASES)
def test_unit_second_moments_forward_and_backward(case):
    check(CASES[case])


@pytest.mark.skipif(LAST, reason="TensorFlow's CPU kernels are channels_last")
@pytest.mark.parametrize("case", CHANNELS_FIRST)
def test_channels_first(case):
    check(CHANNELS_FIRST[case])
