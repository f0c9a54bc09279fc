"""The panel's networks, as Keras builds them: no initializer is named anywhere."""

from __future__ import annotations

import keras
from common.vision_transformer import Positions
from keras import layers

Shape = tuple[int, ...]
Tensor = keras.KerasTensor


def plain(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """Convolutions in two stages, then pooling over all positions and a dense layer."""
    inputs = x = keras.Input(shape)
    half = depth // 2
    for n in range(depth - 1):
        first = (n == 0 and shape[0] > 8) or n == half
        filters = width if n < half else 2 * width
        x = layers.Conv2D(filters, 3, 2 if first else 1, "same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


def vgg(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """Convolutions with maximum pooling after each second one, then two dense layers."""
    inputs = x = keras.Input(shape)
    for n in range(depth - 2):
        x = layers.Conv2D(width * 2 ** (n // 2), 3, padding="same", activation="relu")(x)
        if n % 2 and x.shape[1] > 1:
            x = layers.MaxPooling2D()(x)
    x = layers.Dense(4 * width, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(outputs)(x))


def resnet(
    shape: Shape, outputs: int, depth: int, width: int, batch_norm: bool = False
) -> keras.Model:
    """Basic blocks (He et al. 2016) in two stages: 2n + 2 layers, and a projection."""
    inputs = keras.Input(shape)

    def convolution(x: Tensor, filters: int, window: int = 3, strides: int = 1) -> Tensor:
        x = layers.Conv2D(filters, window, strides, "same", use_bias=not batch_norm)(x)
        # Keras's momentum of 0.99 lags behind in trainings of a few hundred steps.
        return layers.BatchNormalization(momentum=0.9)(x) if batch_norm else x

    x = layers.ReLU()(convolution(inputs, width, strides=2 if shape[0] > 8 else 1))
    blocks = (depth - 2) // 2
    for n in range(blocks):
        is_wider = n == (blocks + 1) // 2
        filters, strides = x.shape[-1] * (2 if is_wider else 1), 2 if is_wider else 1
        shortcut = convolution(x, filters, 1, strides) if is_wider else x
        y = layers.ReLU()(convolution(x, filters, strides=strides))
        x = layers.ReLU()(layers.Add()([shortcut, convolution(y, filters)]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


def normalized_resnet(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """The same with batch normalization behind each convolution."""
    return resnet(shape, outputs, depth, width, batch_norm=True)


def _patch(shape: Shape) -> int:
    """The side of a square of which there are 4×4 in a small image, 8×8 in a larger one."""
    return shape[0] // (8 if shape[0] >= 32 else 4)


def convnext(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """Depthwise convolution, layer normalization and two dense layers in each branch."""
    inputs = keras.Input(shape)
    patch = _patch(shape)
    x = layers.LayerNormalization()(layers.Conv2D(width, patch, patch)(inputs))
    for _ in range(depth):
        y = layers.LayerNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
        y = layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(y))
        x = layers.Add()([x, y])
    x = layers.LayerNormalization()(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(outputs)(x))


def _block(x: Tensor, heads: int, causal: bool) -> Tensor:
    """Attention and a network, each behind layer normalization."""
    width = x.shape[-1]
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(heads, width // heads)(y, y, use_causal_mask=causal)
    x = layers.Add()([x, y])
    y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
    return layers.Add()([x, layers.Dense(width)(y)])


def vit(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """A vision transformer on patches, with the mean of its tokens at the end."""
    inputs = keras.Input(shape)
    patch = _patch(shape)
    x = layers.Conv2D(width, patch, patch)(inputs)
    x = Positions()(layers.Reshape((-1, width))(x))
    for _ in range(depth):
        x = _block(x, 4, causal=False)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(outputs)(x))


def language_model(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """A causal transformer that says at each character which one follows."""
    inputs = keras.Input(shape, dtype="int32")
    x = Positions()(layers.Embedding(outputs, width)(inputs))
    for _ in range(depth):
        x = _block(x, 4, causal=True)
    return keras.Model(inputs, layers.Dense(outputs)(layers.LayerNormalization()(x)))


def _mlp(shape: Shape, outputs: int, depth: int, width: int, activation: str) -> keras.Model:
    inputs = x = keras.Input(shape)
    for _ in range(depth - 1):
        x = layers.Dense(width, activation=activation)(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


def relu_mlp(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """Dense layers with ReLU."""
    return _mlp(shape, outputs, depth, width, "relu")


def tanh_mlp(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """Dense layers with tanh."""
    return _mlp(shape, outputs, depth, width, "tanh")


def lstm(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """LSTM layers, the last state of which goes to a dense layer."""
    return _recurrent(layers.LSTM, shape, outputs, depth, width)


def gru(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """GRU layers, the last state of which goes to a dense layer."""
    return _recurrent(layers.GRU, shape, outputs, depth, width)


def _recurrent(
    kind: type[layers.Layer], shape: Shape, outputs: int, depth: int, width: int
) -> keras.Model:
    inputs = x = keras.Input(shape)
    for n in range(depth):
        x = kind(width, return_sequences=n < depth - 1)(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


def autoencoder(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """Strided convolutions down to 16 numbers, transposed ones back."""
    inputs = x = keras.Input(shape)
    for n in range(depth):
        x = layers.Conv2D(width * 2**n, 3, 2, "same", activation="relu")(x)
    before = x.shape[1:]
    x = layers.Dense(16)(layers.Flatten()(x))
    x = layers.Dense(before[0] * before[1] * before[2], activation="relu")(x)
    x = layers.Reshape(before)(x)
    for n in reversed(range(depth)):
        x = layers.Conv2DTranspose(width * 2**n, 3, 2, "same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(outputs, 3, padding="same")(x))


def unet(shape: Shape, outputs: int, depth: int, width: int) -> keras.Model:
    """Two convolutions at each resolution, down and up again, with concatenated skips."""
    inputs = x = keras.Input(shape)

    def pair(x: Tensor, filters: int) -> Tensor:
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        return x

    skips = []
    for n in range(depth):
        skips.append(pair(x, width * 2**n))
        x = layers.MaxPooling2D()(skips[-1])
    x = pair(x, width * 2**depth)
    for n in reversed(range(depth)):
        x = layers.Conv2DTranspose(width * 2**n, 2, 2, activation="relu")(x)
        x = pair(layers.Concatenate()([x, skips[n]]), width * 2**n)
    return keras.Model(inputs, layers.Conv2D(outputs, 1)(x))
