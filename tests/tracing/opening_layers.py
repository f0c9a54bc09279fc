"""Small layers in the style of models that others publish, one for each way to be hard to read."""

import keras
import numpy as np
from keras import ops

L = keras.layers


class Block(L.Layer):
    """A layer that builds what it holds, each with the block's input shape."""

    parts = ()

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = L.Dense(8, activation="relu", name="inner")

    def build(self, shape):
        self.inner.build(shape)
        for name in self.parts:
            getattr(self, name).build(shape)

    def compute_output_shape(self, shape):
        return shape


class NeedsLength(Block):
    """A decoder's causal mask, made from the length of what it gets."""

    def call(self, x):
        length = ops.shape(x)[1]
        mask = ops.cast(ops.arange(length)[:, None] >= ops.arange(length), x.dtype)
        return ops.einsum("ts,bsd->btd", mask / length, self.inner(x))


class NoTraining(L.Layer):
    """An MLP whose `call` has no `training`, which its caller passes all the same."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = L.Dense(8, name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


class PassesTraining(Block):
    parts = ("mlp",)

    def __init__(self, **options):
        super().__init__(**options)
        self.mlp = NoTraining(name="mlp")

    def call(self, x, training=None):
        return self.inner(self.mlp(x, training=training))


class Cached(L.Layer):
    """Returns its cache beside its output: None where there is none."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = L.Dense(8, name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x, cache=None):
        return self.inner(x), cache


class ReturnsNone(Block):
    parts = ("cached",)

    def __init__(self, **options):
        super().__init__(**options)
        self.cached = Cached(name="cached")

    def call(self, x):
        x, cache = self.cached(self.inner(x))
        return x if cache is None else x + cache


class CachedAttention(L.MultiHeadAttention):
    """Takes a cache, of which the inherited `compute_output_spec` knows nothing."""

    def call(self, query, value, attention_mask=None, cache=None, cache_update_index=None):
        q, k, v = (
            dense(x)
            for dense, x in (
                (self._query_dense, query), (self._key_dense, value), (self._value_dense, value)
            )
        )  # fmt: skip
        scores = ops.softmax(ops.einsum("bthd,bshd->bhts", q, k) / 2)
        output = self._output_dense(ops.einsum("bhts,bshd->bthd", scores, v))
        return output if cache is None else (output, cache)


class AttendsWithCache(Block):
    def __init__(self, **options):
        super().__init__(**options)
        self.attention = CachedAttention(2, 4, name="attention")

    def build(self, shape):
        self.inner.build(shape)
        self.attention.build(shape, shape)

    def call(self, x):
        x = self.inner(x)
        return x + self.attention(x, x, cache=None, cache_update_index=0)


class AffineFirst(Block):
    """`variable * tensor`: Python asks the variable first."""

    def build(self, shape):
        super().build(shape)
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return np.float64(2.0) * (self.scale * self.inner(x) + self.scale)


class Rotary(L.Layer):
    """Positions from the shape alone; two outputs, where its `compute_output_shape` says one."""

    def call(self, x):
        angles = ops.arange(ops.shape(x)[1], dtype="float32")[:, None] / 10
        return x * ops.cos(angles)

    def compute_output_shape(self, shape):
        return shape


class Twin(L.Layer):
    def call(self, a, b):
        return ops.sin(a), ops.cos(b)

    def compute_output_shape(self, shape):
        return shape


class SaysLessThanItReturns(Block):
    def __init__(self, **options):
        super().__init__(**options)
        self.twin = Twin(name="twin")

    def call(self, x):
        a, b = self.twin(x, self.inner(x))
        return a + b


class UnbuiltPart(Block):
    """A part of Keras's own without weights, which no one built."""

    def __init__(self, **options):
        super().__init__(**options)
        self.join = L.Concatenate(axis=-1)
        self.back = L.Dense(8, name="back")

    def build(self, shape):
        self.inner.build(shape)
        self.back.build((*shape[:-1], 16))

    def call(self, x):
        return self.back(self.join([self.inner(x), x]))


class Positions(L.Layer):
    """A table of positions: its output reads weights and shapes, no signal."""

    def build(self, shape):
        self.table = self.add_weight(shape=(20, shape[-1]), name="position_embeddings")
        self.positions = _Table(self.table)

    def call(self, x):
        return x + self.positions(x)

    def compute_output_shape(self, shape):
        return shape


class _Table(L.Layer):
    def __init__(self, table, **options):
        super().__init__(**options)
        self.values = table

    def call(self, x):
        shape = ops.shape(x)
        values = ops.slice(ops.convert_to_tensor(self.values), (0, 0), (shape[1], shape[2]))
        return ops.broadcast_to(values, shape)

    def compute_output_shape(self, shape):
        return shape


class WithPositions(Block):
    parts = ("positions",)

    def __init__(self, **options):
        super().__init__(**options)
        self.positions = Positions(name="positions")

    def call(self, x):
        return self.inner(self.positions(x))


class CountsAxes(Block):
    """`ops.ndim` of a symbolic tensor is a symbolic tensor in Keras, and compared with numbers."""

    def call(self, x):
        x = self.inner(x)
        return x if ops.ndim(x) == 3 else x[:, None]


OPENED = {
    "a length is needed": NeedsLength,
    "training is passed and dropped": PassesTraining,
    "None beside a tensor": ReturnsNone,
    "attention with arguments of its own": AttendsWithCache,
    "a variable on the left": AffineFirst,
    "positions from the shape": lambda: keras.Sequential([Rotary(), L.Dense(8, name="inner")]),
    "a table of positions": WithPositions,
    "more outputs than it says": SaysLessThanItReturns,
    "a part that is not built": UnbuiltPart,
    "the rank as a number": CountsAxes,
}


def _outside(x):
    """A function of the backend, which Keras cannot follow."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.math.tanh(x)
    if backend == "jax":
        import jax.numpy as jnp

        return jnp.tanh(x)
    import torch

    return torch.tanh(x)


class LeavesKeras(Block):
    def call(self, x):
        return _outside(self.inner(x))


class NeedsLengthThenLeaves(Block):
    def call(self, x):
        positions = ops.arange(ops.shape(x)[1], dtype=x.dtype)
        return _outside(self.inner(x)) + positions[:, None]


CLOSED = {
    "leaves Keras": LeavesKeras,
    "needs a length, then leaves Keras": NeedsLengthThenLeaves,
}


class StrangeAttention(L.Layer):
    """Attention whose subclass rewrites `call`."""

    def __init__(self, **options):
        super().__init__(**options)
        self.attention = CachedAttention(2, 4, name="attention")

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x)

    def compute_output_shape(self, shape):
        return shape


class _Two(keras.Model):
    def __init__(self):
        super().__init__(name="two")
        self.first, self.last = L.Dense(4, name="first"), L.Dense(2, name="last")

    def build(self, shape):
        self.first.build(shape)
        self.last.build((None, 4))


class _LeavesKeras(_Two):
    def call(self, x):
        return self.last(_outside(self.first(x)))


def _followed_by_nothing():
    model = _LeavesKeras()
    model.build((None, 8))
    return model


class _TwoArguments(_Two):
    def build(self, a_shape, b_shape=None):
        super().build(a_shape)

    def call(self, a, b):
        return self.last(_outside(self.first(a)) * b)


def _of_two_arguments():
    model = _TwoArguments()
    model(np.ones((1, 8), "float32"), np.ones((1, 4), "float32"))
    return model


BYPASSED = {"leaves Keras": _followed_by_nothing, "of two arguments": _of_two_arguments}
