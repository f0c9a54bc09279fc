"""Models, meshes and what is compared of weights that lie in shards."""

import hashlib

import keras
import numpy as np

import keras_varinit as kv
from keras_varinit import sharding
from keras_varinit.tensors import local_parts
from tests.models import FAMILIES

L = keras.layers

# What `initialize` is tried with: our own draws, whole matrices, and Keras's.
SCHEMES = ("recommended", "asv_backward", "he_normal")
IN_NETWORK = ("asv_forward", "enhanced_he_uniform", "partial_identity", "asv_orthogonal")


def network(seed=5):
    """Own blocks, edited ones, Keras's, whole matrices; biases and scales; an LSTM's own pieces."""
    x = inputs = keras.Input((4, 4, 4))
    for name in IN_NETWORK:
        initializer = FAMILIES[name](seed)
        x = L.Conv2D(8, 3, padding="same", activation="relu", kernel_initializer=initializer)(x)
    x = L.Flatten()(x)
    x = L.Dense(
        16,
        "relu",
        kernel_initializer=kv.DepthScaled("he_normal", seed=seed),
        bias_initializer=kv.FanInBias(seed=seed),
    )(x)
    x = L.LayerNormalization(gamma_initializer="branch_end_zeros")(x)
    x = L.Reshape((4, 4))(x)
    x = L.LSTM(8, kernel_initializer=kv.ASVForward(seed=seed), recurrent_initializer="orthogonal")(
        x
    )
    return keras.Model(inputs, L.Dense(16, kernel_initializer="he_normal")(x))


def model_parallel(rows, columns):
    """Kernels by output on the axis "model", the last ones by input on "batch" too."""
    devices = keras.distribution.list_devices("cpu")
    mesh = keras.distribution.DeviceMesh((rows, columns), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*conv2d.*kernel"] = (None, None, None, "model")
    layouts[".*dense.*kernel"] = ("batch", "model")
    layouts[".*dense.*bias"] = ("model",)
    layouts[".*lstm.*kernel"] = (None, "model")
    layouts[".*lstm.*bias"] = ("model",)
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


def digests(model):
    """A digest of each part that this host holds, by the parts' places, of every weight."""
    return [
        {str(index): _digest(part) for index, part in local_parts(variable).items()}
        for variable in model.weights
    ]


def agree(parts, whole):
    """Whether parts' digests are those of the same places of whole weights."""
    return len(parts) == len(whole) and all(
        digest == _digest(weight[tuple(slice(*bounds) for bounds in eval(place))])
        for each, weight in zip(parts, whole, strict=True)
        for place, digest in each.items()
    )


def steps(model):
    """What happens to a model, step by step: the digests and what else is to be compared."""
    yield "built", digests(model), None
    yield "injected", digests_after(model, kv.inject), statuses(kv.inject(model))
    for scheme in SCHEMES:
        report = kv.initialize(model, scheme, seed=3)
        yield scheme, digests(model), [row.status for row in report]


def digests_after(model, action):
    action(model)
    return digests(model)


def statuses(report):
    return [row.status for row in report]


def shards_of(model):
    """Whether each weight's shards still are where its layout says."""
    return [sharding.layout_of(variable.value) for variable in model.weights]


def _digest(values):
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
