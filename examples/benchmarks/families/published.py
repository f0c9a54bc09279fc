"""Networks as published example code writes them: layers of its own, tables of positions, graphs.

They are toys of what tutorials train. What they have in common is code that works around layers:
patches cut out of images, positions looked up by a range, matrices of known numbers, a reshape.
"""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from .network import Network, conv, mlp, model, tokens

L = keras.layers
WIDTH, LENGTH, WORDS = 64, 16, 100


class Positions(L.Layer):
    """Adds a row of a table to each position: to tokens' rows if there are `words`."""

    def __init__(self, length: int, words: int = 0) -> None:
        super().__init__()
        self.places = L.Embedding(length, WIDTH)
        self.words = L.Embedding(words, WIDTH) if words else None
        self.length = length

    def call(self, x: Any) -> Any:
        """Looks up `arange`, which has no batch."""
        x = x if self.words is None else self.words(x)
        return x + self.places(ops.arange(self.length))


class Patches(L.Layer):
    """Cuts images into patches, which become rows of entries."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def call(self, images: Any) -> Any:
        """Leaves no space between patches."""
        cut = ops.image.extract_patches(images, self.size)
        _, rows, columns, entries = cut.shape
        return ops.reshape(cut, (-1, rows * columns, entries))


def _encoder(x: Any, *, heads: int = 4, size: int = WIDTH // 4, before: bool = True) -> Any:
    """A block of a transformer, with normalization before or behind its two branches."""

    def branch(x: Any, function: Any) -> Any:
        if before:
            return x + function(L.LayerNormalization(epsilon=1e-6)(x))
        return L.LayerNormalization(epsilon=1e-6)(x + function(x))

    x = branch(x, lambda y: L.MultiHeadAttention(heads, size)(y, y))
    return branch(x, lambda y: mlp(y, 2 * WIDTH, WIDTH, activation="gelu"))


def _classifier(x: Any) -> Any:
    """Tokens and positions, a block with normalization behind it, the mean of all tokens."""
    x = _encoder(Positions(LENGTH, WORDS)(x), before=False)
    return L.Dense(32)(L.GlobalAveragePooling1D()(x))


def _vision_transformer(x: Any) -> Any:
    x = Positions(16)(L.Dense(WIDTH)(Patches(6)(x)))
    x = _encoder(_encoder(x, size=WIDTH), size=WIDTH)
    return mlp(L.Flatten()(L.LayerNormalization()(x)), 128, 32)


def _mixer(x: Any) -> Any:
    """Dense layers along positions and along channels in turn."""
    x = Positions(16)(L.Dense(WIDTH)(Patches(6)(x)))
    for _ in range(2):
        y = L.Permute((2, 1))(L.LayerNormalization()(x))
        x = x + L.Permute((2, 1))(mlp(y, 32, 16, activation="gelu"))
        x = x + mlp(L.LayerNormalization()(x), 128, WIDTH, activation="gelu")
    return L.Dense(32)(L.GlobalAveragePooling1D()(x))


def _series(x: Any) -> Any:
    """One feature, so that a layer normalization leaves nothing of its branch."""
    for _ in range(2):
        x = x + L.LayerNormalization()(L.MultiHeadAttention(4, 16)(x, x))
        x = x + L.LayerNormalization()(mlp(x, 4, 1))
    return mlp(L.GlobalAveragePooling1D()(x), 32, 8)


def _adjacency(nodes: int = 20) -> Any:
    """A random graph with loops, divided by the roots of both degrees."""
    rng = np.random.default_rng(0)
    linked = rng.random((nodes, nodes)) < 0.2
    linked = (linked | linked.T | np.eye(nodes, dtype=bool)).astype("float32")
    degrees = np.sqrt(linked.sum(axis=1))
    return linked / degrees[:, None] / degrees[None, :]


def _graph_convolution(x: Any) -> Any:
    for _ in range(2):
        x = ops.relu(ops.matmul(_adjacency(), L.Dense(WIDTH)(x)))
    return L.Dense(16)(L.GlobalAveragePooling1D()(x))


def _neighbors_beside(x: Any) -> Any:
    """Each node beside the mean of its neighbors, rows of unit length."""
    means = _adjacency() / _adjacency().sum(axis=1, keepdims=True)
    for _ in range(2):
        x = ops.relu(L.Dense(48)(L.Concatenate()([x, ops.matmul(means, x)])))
        x = L.UnitNormalization()(x) * 48**0.5
    return L.Dense(8)(x)


def _input_transform(x: Any, *, features: int = 24) -> Any:
    """A matrix for all points, computed from all points, as in PointNet."""

    def each(x: Any, width: int) -> Any:
        return L.ReLU()(L.BatchNormalization()(L.Conv1D(width, 1)(x)))

    x = each(x, 32)
    matrix = mlp(L.GlobalMaxPooling1D()(each(x, WIDTH)), 32, 32 * 32)
    x = L.Dot(axes=(2, 1))([x, L.Reshape((32, 32))(matrix)])
    return mlp(L.GlobalMaxPooling1D()(each(x, 128)), WIDTH, features)


def _radiance_field(x: Any) -> Any:
    """Sines and cosines of rising frequencies, which come back half-way."""
    waves = [wave(2.0**n * x) for n in range(4) for wave in (ops.sin, ops.cos)]
    encoded = x = ops.concatenate([x, *waves], axis=-1)
    for layer in range(6):
        x = L.Dense(WIDTH, activation="relu")(x)
        if layer == 3:
            x = L.Concatenate()([x, encoded])
    return L.Dense(4)(x)


def _columns() -> keras.Model:
    """Six categories as tokens, with a table of columns, beside five numbers."""
    categories = [keras.Input((), dtype="int32") for _ in range(6)]
    numbers = keras.Input((5,))
    x = ops.stack([L.Embedding(10, WIDTH)(each) for each in categories], axis=1)
    x = L.Flatten()(_encoder(Positions(6)(x), before=False))
    x = L.Concatenate()([x, L.LayerNormalization()(numbers)])
    return keras.Model([*categories, numbers], mlp(x, WIDTH, 8, activation="selu"))


def _columns_data(rng: np.random.Generator, count: int) -> Any:
    categories = [rng.integers(0, 10, count).astype("int32") for _ in range(6)]
    return [*categories, rng.standard_normal((count, 5), np.float32)]


def _attention_to_maps(x: Any) -> Any:
    """Gates by channel from two poolings, then gates by position from two reductions."""
    x = L.Conv2D(32, 3, padding="same", activation="relu")(x)
    first, last = L.Dense(8, activation="relu"), L.Dense(32)
    pooled = (L.GlobalAveragePooling2D()(x), L.GlobalMaxPooling2D()(x))
    x = x * L.Reshape((1, 1, 32))(ops.sigmoid(sum(last(first(each)) for each in pooled)))
    reduced = [ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)]
    x = x * L.Conv2D(1, 7, padding="same", activation="sigmoid")(L.Concatenate()(reduced))
    return L.Conv2D(16, 3)(x)


def _chained_poolings(x: Any) -> Any:
    pooled = [conv(x, 16, 1, activation="silu")]
    for _ in range(3):
        pooled.append(L.MaxPooling2D(5, 1, "same")(pooled[-1]))
    return L.Conv2D(16, 1)(L.Concatenate()(pooled))


def _windows(x: Any) -> Any:
    """Attention within windows, which a reshape makes examples of."""
    x = L.Conv2D(WIDTH, 2, 2)(x)
    y = ops.reshape(L.LayerNormalization()(x), (-1, 2, 4, 2, 4, WIDTH))
    y = ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 16, WIDTH))
    y = ops.reshape(L.MultiHeadAttention(4, 16)(y, y), (-1, 2, 2, 4, 4, WIDTH))
    x = x + ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, 8, 8, WIDTH))
    return L.Dense(16)(L.GlobalAveragePooling2D()(L.LayerNormalization()(x)))


def _compare_columns(x: Any) -> Any:
    """Squared distances to 32 points, of which the first term is the same for all."""
    rows = L.Dense(16)(x)
    distances = ops.sum(ops.square(rows), axis=-1, keepdims=True) - 2 * L.Dense(32)(rows)
    return L.Dense(8)(ops.softmax(-distances))


# Examples are fewer than positions: a table's rows have no batch, which is told by its size.
_IMAGE = (24, 24, 3)
_of = functools.partial(functools.partial, model)
PUBLISHED: dict[str, Network] = {
    "text classifier, table of positions": Network(
        _of((LENGTH,), _classifier), tokens(WORDS, LENGTH), examples=12
    ),
    "vision transformer, cut patches": Network(_of(_IMAGE, _vision_transformer), examples=12),
    "MLP-Mixer": Network(_of(_IMAGE, _mixer), examples=12),
    "time series of one feature": Network(_of((50, 1), _series), examples=32),
    "graph convolution": Network(_of((20, 32), _graph_convolution)),
    "GraphSAGE": Network(_of((20, 16), _neighbors_beside)),
    "PointNet, input transform": Network(_of((64, 3), _input_transform), known=False),
    "radiance field": Network(_of((16, 3), _radiance_field)),
    "TabTransformer": Network(_columns, _columns_data),
    "CBAM": Network(_of((12, 12, 3), _attention_to_maps)),
    "chained max poolings": Network(_of((8, 8, 8), _chained_poolings), examples=32),
    "window attention": Network(_of((16, 16, 3), _windows), known=False),
    "softmax of distances": Network(_of((8, 16), _compare_columns), known=False),
}
