"""Networks that are calibrated, and what their kernels put out."""

import keras
import numpy as np
from keras import ops

L = keras.layers


def draw(*shape, seed=0, scale=1.0, mean=0.0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return (scale * values + mean).astype("float32")


def images(count=8, size=8):
    return draw(count, size, size, 3, scale=3.0, mean=0.5)


def biases():
    return keras.initializers.RandomNormal(stddev=0.3, seed=3)


def conv(filters=8, size=3, **options):
    options = {"padding": "same", "activation": "relu", "bias_initializer": biases(), **options}
    return L.Conv2D(filters, size, **options)


def plain(pooling=L.MaxPooling2D, **options):
    """Two stages of two convolutions, and a softmax."""
    layers = [keras.Input((8, 8, 3)), conv(**options), conv(**options), pooling(2)]
    layers += [L.Conv2D(8, 3, activation="tanh"), L.Flatten(), L.Dense(16), L.LeakyReLU()]
    return keras.Sequential([*layers, L.Dense(4, activation="softmax", bias_initializer=biases())])


def residual():
    inputs = keras.Input((8, 8, 3))
    x = conv()(inputs)
    for _ in range(2):
        y = conv(activation=None)(ops.relu(conv(activation=None)(x)))
        x = ops.relu(x + y)
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(3)(x))


def branches():
    inputs = keras.Input((8, 8, 3))
    x = conv(activation="elu")(inputs)
    x = L.Concatenate()([L.DepthwiseConv2D(3, padding="same")(x), conv(4, 1)(x)])
    x = L.SeparableConv2D(8, 3, activation="swish", bias_initializer=biases())(x)
    x = L.Conv2DTranspose(6, 3, strides=2, bias_initializer=biases())(x)
    x = L.EinsumDense("bhwc,cd->bhwd", (None, None, 5), bias_axes="d", bias_initializer=biases())(x)
    return keras.Model(inputs, L.Dense(2)(L.GlobalMaxPooling2D()(x)))


def several_inputs():
    one, two = keras.Input((6,), name="one"), keras.Input((4,), name="two")
    x = L.Add()([L.Dense(8)(one), L.Dense(8, bias_initializer=biases())(two)])
    return keras.Model([one, two], [L.Dense(3)(ops.tanh(x)), L.Dense(2)(x)])


def nested_with_dropout():
    inner = keras.Sequential([keras.Input((16,)), L.Dense(16, "relu"), L.Dropout(0.4)])
    inputs = keras.Input((6,))
    x = inner(L.Dropout(0.2)(L.Dense(16, "gelu", bias_initializer=biases())(inputs)))
    return keras.Model(inputs, L.Dense(3)(x))


def pre_activations(model, x):
    """Second moment of every weight layer's output at its first call, activation left out.

    What reaches a layer is computed by a plain Keras model; the layer's copy without activation is
    then called on it.
    """
    found = {}
    for inner in [model, *(layer for layer in model.layers if isinstance(layer, keras.Model))]:
        outer = inner._inbound_nodes[-1].input_tensors[0] if inner is not model else None
        given = x if outer is None else run(model, outer, x)
        for layer in inner.layers:
            is_weights = hasattr(layer, "kernel") or "Conv" in type(layer).__name__
            if not is_weights:
                continue
            config = layer.get_config()
            if "activation" in config:
                config["activation"] = "linear"
            reads = layer._inbound_nodes[0].input_tensors[0]
            reached = ops.convert_to_tensor(run(inner, reads, given))
            copy = type(layer).from_config(config)
            copy.build(tuple(reached.shape))
            copy.set_weights(layer.get_weights())
            found[layer.name] = second_moment(copy(reached))
    return found


def run(model, tensor, x, training=False):
    """The value of a symbolic tensor of a model."""
    for number, each in enumerate(model.inputs):
        if tensor is each:
            return x[number] if isinstance(x, list) else x
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    return keras.Model(inputs, tensor)(x, training=training)


def second_moment(tensor):
    return float(np.mean(ops.convert_to_numpy(tensor).astype(np.float64) ** 2))


def assert_unit(model, x, target=1.0):
    """Every layer within 1 %, and 1e-4 more for rounding; returns the worst deviation."""
    moments = pre_activations(model, x)
    assert moments
    worst = max(abs(moment / target - 1) for moment in moments.values())
    assert worst <= 0.0101, moments
    return worst
