"""Small models, and what the tests compare of them."""

import keras
import numpy as np

import keras_varinit as kv
from keras_varinit import keras_private
from keras_varinit.initializers.base import ContextualInitializer

L = keras.layers

# Every family of initializers, also inside each other, as functions of the seed.
FAMILIES = {
    "asv_forward": lambda seed: kv.ASVForward(seed=seed),
    "asv_backward": lambda seed: kv.ASVBackward("truncated_normal", max_gain=None, seed=seed),
    "enhanced_he_normal": lambda seed: kv.EnhancedHeNormal("position", seed=seed),
    "enhanced_he_uniform": lambda seed: kv.EnhancedHeUniform(seed=seed),
    "enhanced_glorot_normal": lambda seed: kv.EnhancedGlorotNormal(concentration=2, seed=seed),
    "enhanced_glorot_uniform": lambda seed: kv.EnhancedGlorotUniform(delta=0.5, seed=seed),
    "enhanced_lecun_normal": lambda seed: kv.EnhancedLecunNormal(seed=seed),
    "enhanced_lecun_uniform": lambda seed: kv.EnhancedLecunUniform(seed=seed),
    "enhanced": lambda seed: kv.Enhanced("random_normal", seed=seed),
    "enhanced_orthogonal": lambda seed: kv.Enhanced("orthogonal", seed=seed),
    "enhanced_asv": lambda seed: kv.Enhanced(kv.ASVForward(), seed=seed),
    "depth_scaled": lambda seed: kv.DepthScaled(base=4.0, schedule="decreasing", seed=seed),
    "partial_identity": lambda seed: kv.PartialIdentity(seed=seed),
    "asv_orthogonal": lambda seed: kv.ASVForward("orthogonal", seed=seed),
    "signal_orthogonal": lambda seed: kv.SignalPreserving("orthogonal", seed=seed),
    "mimetic": lambda seed: kv.Mimetic("he_normal", seed=seed),
    "residual_scaled": lambda seed: kv.ResidualScaled("he_uniform", "fixup", seed=seed),
    "depth_scaled_enhanced": lambda seed: kv.DepthScaled(
        kv.EnhancedHeUniform(), network_variance=0.5, seed=seed
    ),
}


def cnn(initializer="asv_backward", *, sized=True, **dense):
    """Two convolutions and a dense layer; not `sized`, it is built by what it is called on."""
    layers = [
        L.Conv2D(4, 3, padding="same", activation="relu", kernel_initializer=initializer),
        L.Conv2D(4, 3, padding="same", activation="relu", kernel_initializer=initializer),
        L.GlobalAveragePooling2D(),
        L.Dense(2, kernel_initializer=initializer, **dense),
    ]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers] if sized else layers)


class OwnCall(keras.Model):
    """The same with a `call` of its own, of which Keras records no graph."""

    def __init__(self, initializer="asv_backward"):
        super().__init__(name="own")
        self.steps = cnn(initializer, sized=False).layers

    def call(self, x):
        for layer in self.steps:
            x = layer(x)
        return x


def perceptron(initializer="asv_forward", *, widths=(8, 8, 8)):
    """Dense layers of equal shapes on eight numbers."""
    layers = [L.Dense(n, activation="relu", kernel_initializer=initializer) for n in widths]
    return keras.Sequential([keras.Input((8,)), *layers])


def every_family(seed=None):
    """One convolution per family, the last ones in a nested model; several kinds of layer."""
    made = [make(seed) for make in FAMILIES.values()]
    inputs = keras.Input((8, 8, 3), name="image")
    x = inputs
    for initializer in made[:-2]:
        x = L.Conv2D(4, 3, padding="same", activation="relu", kernel_initializer=initializer)(x)
    x = L.MaxPooling2D(2)(x)
    x = L.DepthwiseConv2D(2, depthwise_initializer=made[0])(x)
    nested = keras.Sequential(
        [
            keras.Input(tuple(x.shape[1:])),
            L.Conv2D(4, 2, activation="relu", kernel_initializer=made[-2]),
            L.SeparableConv2D(4, 2, depthwise_initializer=made[-1], pointwise_initializer=made[-1]),
        ],
        name="nested",
    )
    x = L.Flatten()(nested(x))
    return keras.Model(inputs, L.Dense(2, kernel_initializer=made[1], bias_initializer="ones")(x))


def data(count=16):
    """Images and targets, the same at every call."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 8, 8, 3)).astype("float32")
    return x, rng.standard_normal((count, 2)).astype("float32")


def fit(model, callbacks=(), **options):
    """Trains without shuffling, four steps an epoch."""
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    return model.fit(*data(), callbacks=list(callbacks), **options)


def arrays(variables):
    """Copies of the values; half precision as float32, which holds them exactly."""
    return [np.array(keras.ops.convert_to_numpy(v)).astype("float32") for v in variables]


def weights(model):
    return arrays(model.weights)


def kernels(model):
    """Values of all weights that are no vectors, in the model's order."""
    return [value for value in weights(model) if value.ndim > 1]


def initializers(model):
    """The initializer objects that the model's layers hold, with their configurations."""
    return [
        (layer.name, attribute, held, held.get_config())
        for layer in keras_private.layers_of(model)
        for attribute, held in keras_private.initializer_attributes(layer, ContextualInitializer)
    ]


def state(model):
    """Everything that `inject` may change: weights, the optimizer's variables, initializers."""
    optimizer = getattr(model, "optimizer", None)
    moments = [] if optimizer is None else arrays(optimizer.variables)
    return weights(model), moments, initializers(model)


def assert_same_state(after, before):
    for values, expected in zip(after[:2], before[:2], strict=True):
        assert_equal(values, expected)
    for (*place, held, config), (*expected, original, was) in zip(after[2], before[2], strict=True):
        assert place == expected
        assert held is original
        assert config == was


def equal(left, right):
    """Whether two lists of arrays agree bit for bit."""
    return len(left) == len(right) and all(map(np.array_equal, left, right))


def assert_equal(left, right):
    assert len(left) == len(right)
    for value, expected in zip(left, right, strict=True):
        np.testing.assert_array_equal(value, expected)
