"""Random small models: Hypothesis draws a JSON-plain description, `build` makes the model.

A description is `{"input", "initializers", "top", "body"}`. `initializers` is a pool, to which the
blocks of `body` refer by number: a `shared` entry is one object for every layer that names it.
"""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import ops

import keras_varinit as kv
from tests.models import FAMILIES

L = keras.layers

INPUTS = {"vector": (3,), "sequence": (4, 2), "tokens": (4,), "image": (5, 5, 2)}
RANKS = {"vector": 2, "sequence": 3, "tokens": 3, "image": 4}
OF_KERAS = ("he_normal", "glorot_uniform", "orthogonal", "random_normal", "lecun_uniform")
BIASES = {
    "zeros": lambda: "zeros",
    "random": lambda: keras.initializers.RandomNormal(seed=1),
    "asv_forward": lambda: kv.ASVForward(seed=1),
}


def _convolution(dims):
    depthwise = {1: L.DepthwiseConv1D, 2: L.DepthwiseConv2D}[dims]
    separable = {1: L.SeparableConv1D, 2: L.SeparableConv2D}[dims]
    plain = {1: L.Conv1D, 2: L.Conv2D}[dims]
    transposed = {1: L.Conv1DTranspose, 2: L.Conv2DTranspose}[dims]
    return {
        "conv": lambda width, new, **o: plain(
            width, 3, padding="same", kernel_initializer=new(), **o
        ),
        "transposed": lambda width, new, **o: transposed(
            width, 2, padding="same", kernel_initializer=new(), **o
        ),
        "depthwise": lambda width, new, **o: depthwise(
            2, padding="same", depth_multiplier=width - 1, depthwise_initializer=new(), **o
        ),
        "separable": lambda width, new, **o: separable(
            width, 2, padding="same", depthwise_initializer=new(), pointwise_initializer=new(), **o
        ),
    }


def _recurrent(cls, wrap=lambda layer: layer):
    def make(width, new, activation, **options):
        layer = cls(
            width,
            return_sequences=True,
            kernel_initializer=new(),
            recurrent_initializer=new(),
            **options,
        )
        return wrap(layer)

    return make


def _dense(width, new, **options):
    return L.Dense(width, kernel_initializer=new(), **options)


def _weightless(make):
    return lambda width, new, **options: make()


_ANY_RANK = {
    "dense": _dense,
    "norm": _weightless(L.BatchNormalization),
    "relu": _weightless(L.ReLU),
}
# What stands at each rank; `new()` gives the initializer, `width` the channels of the output.
LAYERS = {
    2: _ANY_RANK,
    3: {
        **_ANY_RANK,
        **_convolution(1),
        "lstm": _recurrent(L.LSTM),
        "gru": _recurrent(L.GRU),
        "bidirectional": _recurrent(L.SimpleRNN, L.Bidirectional),
        "attention": lambda width, new, activation, **o: L.MultiHeadAttention(
            2, width, kernel_initializer=new(), **o
        ),
    },
    4: {
        **_ANY_RANK,
        **_convolution(2),
        "pool": _weightless(lambda: L.MaxPooling2D(2, 1, padding="same")),
    },
}
# Further layers and what users write by hand, which `architectures(rich=True)` adds.
FURTHER = {
    "dropout": _weightless(lambda: L.Dropout(0.3)),
    "layer_norm": _weightless(L.LayerNormalization),
    "leaky": _weightless(L.LeakyReLU),
    "einsum": lambda width, new, **o: L.EinsumDense(
        "...a,ab->...b", width, kernel_initializer=new(), **o
    ),
}
RAW = {
    "tanh": ops.tanh,
    "square": ops.square,
    "softmax": lambda x: ops.softmax(x, axis=-1),
    "flip": lambda x: ops.flip(x, axis=-1),
    "scale": lambda x: 0.5 * x - 0.1,
    "rms": lambda x: x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-3),
    "halves": lambda x: ops.concatenate(ops.split(x, [1], axis=-1)[::-1], axis=-1),
}
TWO = {"multiply": ops.multiply, "maximum": ops.maximum, "gate": lambda x, y: x * ops.sigmoid(y)}
WEIGHTLESS = {"norm", "relu", "pool", *FURTHER} - {"einsum"}
# MultiHeadAttention takes two tensors, so it stands in no chain.
_NOT_IN_CHAINS = {"attention"}


@keras.saving.register_keras_serializable("tests")
class Chain(keras.Model):
    """Calls its layers in a `call` of its own, around each a skip where the shapes allow it."""

    def __init__(self, layers, **options):
        super().__init__(**options)
        self.steps = list(layers)

    def build(self, shape):
        for layer in self.steps:
            if not layer.built:
                layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def compute_output_shape(self, shape):
        for layer in self.steps:
            shape = layer.compute_output_shape(shape)
        return shape

    def call(self, x, training=None):
        for layer in self.steps:
            takes_training = isinstance(layer, keras.Model | L.BatchNormalization)
            y = layer(x, training=training) if takes_training else layer(x)
            x = x + y if x.shape == y.shape else ops.relu(y)
        return x

    def get_config(self):
        steps = [keras.saving.serialize_keras_object(layer) for layer in self.steps]
        return {**super().get_config(), "layers": steps}

    @classmethod
    def from_config(cls, config):
        steps = [keras.saving.deserialize_keras_object(layer) for layer in config.pop("layers")]
        return cls(steps, **config)


class _Builder:
    def __init__(self, description):
        self.pool = description["initializers"]
        self.rank = RANKS[description["input"]]
        self.shared = {}

    def initializer(self, number):
        entry = self.pool[number % len(self.pool)]
        if not entry["shared"]:
            return self._new(entry)
        return self.shared.setdefault(number % len(self.pool), self._new(entry))

    def _new(self, entry):
        name, seed = entry["name"], entry["seed"]
        if name in FAMILIES:
            return FAMILIES[name](seed)
        initializer = keras.initializers.get(name)
        return type(initializer).from_config({**initializer.get_config(), "seed": seed})

    def layer(self, block):
        options = {}
        if block["layer"] not in WEIGHTLESS:
            options = {
                "activation": block["activation"],
                "bias_initializer": BIASES[block["bias"]](),
            }
        layer = {**LAYERS[self.rank], **FURTHER}[block["layer"]](
            block["width"], lambda: self.initializer(block["initializer"]), **options
        )
        layer.trainable = block["trainable"]
        return layer

    def step(self, block, shape=None):
        """A layer or a model for a block of a chain."""
        if "layer" in block:
            return self.layer(block)
        steps = block["body"]
        if block["nested"] == "functional":
            inputs = keras.Input(tuple(shape[1:]))
            model = keras.Model(inputs, self.follow(steps, inputs))
        elif block["nested"] == "sequential":
            model = keras.Sequential([self.step(step) for step in steps])
        else:
            model = Chain([self.step(step) for step in steps])
        if not block["trainable"]:
            model.trainable = False
        return model

    def follow(self, body, x):
        for block in body:
            x = self.apply(block, x)
        return x

    def apply(self, block, x):
        if "residual" in block:
            y = self.follow(block["residual"], x)
            return x + self._dense(block, y, x.shape[-1])
        if "raw" in block:
            return RAW[block["raw"]](x)
        if "two" in block:
            first, second = (self.follow(branch, x) for branch in block["branches"])
            return TWO[block["two"]](first, self._dense(block, second, first.shape[-1]))
        if "branches" in block:
            return L.Concatenate()([self.follow(branch, x) for branch in block["branches"]])
        if "twice" in block:
            width = x.shape[-1]
            layer = L.Dense(
                width, activation="tanh", kernel_initializer=self.initializer(block["initializer"])
            )
            return layer(layer(x))
        step = self.step(block, x.shape)
        return step(x, x) if isinstance(step, L.MultiHeadAttention) else step(x)

    def _dense(self, block, x, width):
        if x.shape[-1] == width:
            return x
        return L.Dense(width, kernel_initializer=self.initializer(block["initializer"]))(x)


def build(description):
    """The built Keras model of a description."""
    builder = _Builder(description)
    kind, shape = description["input"], INPUTS[description["input"]]
    if kind == "tokens":
        embed = L.Embedding(5, 2, embeddings_initializer=builder.initializer(0))
        inputs = keras.Input(shape, dtype="int32")
        return keras.Model(inputs, builder.follow(description["body"], embed(inputs)))
    if description["top"] == "functional":
        inputs = keras.Input(shape)
        return keras.Model(inputs, builder.follow(description["body"], inputs))
    steps = [builder.step(block) for block in description["body"]]
    if description["top"] == "sequential":
        return keras.Sequential([keras.Input(shape), *steps])
    model = Chain(steps)
    # For any batch: on Keras 3.10 EinsumDense's outputs have the batch size that it was built with.
    model.build((None, *shape))
    model(data(description))
    return model


def data(description):
    """Two inputs for the model of a description."""
    shape = (2, *INPUTS[description["input"]])
    rng = np.random.default_rng(0)
    if description["input"] == "tokens":
        return rng.integers(0, 5, shape).astype("int32")
    return rng.standard_normal(shape).astype("float32")


_NAMES = st.sampled_from([*FAMILIES, *FAMILIES, *OF_KERAS])


def _pool(seeds):
    entry = st.fixed_dictionaries({"name": _NAMES, "seed": seeds, "shared": st.booleans()})
    ours = st.fixed_dictionaries(
        {"name": st.sampled_from(list(FAMILIES)), "seed": seeds, "shared": st.just(True)}
    )
    return st.tuples(ours, st.lists(entry, max_size=2)).map(lambda pair: [pair[0], *pair[1]])


_NUMBERS = st.integers(0, 2)
_MOSTLY = st.sampled_from([True, True, True, False])


def _layers(names):
    return st.fixed_dictionaries(
        {
            "layer": st.sampled_from(sorted(names)),
            "width": st.integers(2, 3),
            "activation": st.sampled_from([None, "relu", "tanh"]),
            "bias": st.sampled_from(list(BIASES)),
            "initializer": _NUMBERS,
            "trainable": _MOSTLY,
        }
    )


def _nested(kinds, body):
    return st.fixed_dictionaries({"nested": kinds, "body": body, "trainable": _MOSTLY})


def _chains(rank, depth, further=frozenset()):
    steps = _layers((LAYERS[rank].keys() | further) - _NOT_IN_CHAINS)
    if depth:
        kinds = st.sampled_from(["sequential", "chain"])
        steps = st.one_of(steps, steps, _nested(kinds, _chains(rank, depth - 1, further)))
    return st.lists(steps, min_size=1, max_size=3)


def _graphs(rank, depth, further=frozenset()):
    steps = [_layers(LAYERS[rank].keys() | further)] * 2
    if further:
        steps.append(st.fixed_dictionaries({"raw": st.sampled_from(sorted(RAW))}))
    if depth:
        inner = _graphs(rank, depth - 1, further)
        numbered = {"initializer": _NUMBERS}
        steps += [
            st.fixed_dictionaries({"residual": inner, **numbered}),
            st.fixed_dictionaries({"branches": st.lists(inner, min_size=2, max_size=2)}),
            st.fixed_dictionaries({"twice": st.just(True), **numbered}),
            _nested(st.just("functional"), inner),
            _nested(st.sampled_from(["sequential", "chain"]), _chains(rank, depth - 1, further)),
        ]
    if further and depth:
        pairs = {"branches": st.lists(inner, min_size=2, max_size=2), **numbered}
        steps.append(st.fixed_dictionaries({"two": st.sampled_from(sorted(TWO)), **pairs}))
    return st.lists(st.one_of(steps), min_size=1, max_size=3)


def kernels_in(body):
    """How many weight layers a body makes at least."""
    count = 0
    for block in body:
        inner = [block.get("body", ()), block.get("residual", ()), *block.get("branches", ())]
        count += sum(kernels_in(part) for part in inner)
        count += block.get("layer") not in {None, *WEIGHTLESS}
        count += "twice" in block
    return count


@st.composite
def architectures(draw, *, seeds=None, depth=2, rich=False, chain=False):
    """Descriptions; `seeds` draws the seed of each initializer, None or an integer if not given.

    `rich` adds the layers of `FURTHER`, and operations that stand in no layer; `chain` gives models
    with a `call` of their own alone.
    """
    kind = draw(st.sampled_from(sorted(INPUTS.keys() - ({"tokens"} if chain else ()))))
    top = draw(st.sampled_from(["functional", "functional", "sequential", "chain"]))
    top = "chain" if chain else top
    further = FURTHER.keys() if rich else frozenset()
    graphs = top == "functional" or kind == "tokens"
    body = draw(
        (_graphs if graphs else _chains)(RANKS[kind], depth, further).filter(
            lambda body: 1 <= kernels_in(body) <= 8
        )
    )
    pool = draw(_pool(st.sampled_from([None, 0, 7]) if seeds is None else seeds))
    return {"input": kind, "top": top, "initializers": pool, "body": body}
