"""A small vision transformer (Dosovitskiy et al. 2021): pre-norm blocks on patches of an image."""

from __future__ import annotations

import keras
from keras import layers


class Positions(layers.Layer):
    """Adds a learned vector to each token.

    The look-up happens in `call`: an `Embedding` called on a range of numbers while a functional
    model is built outputs a constant, and no weight of it is in the model.

    The vectors are drawn by `Embedding`'s default, U(-0.05, 0.05).
    """

    def build(self, input_shape: tuple[int | None, int, int]) -> None:
        """Makes a vector for each token.

        Args:
            input_shape: Batch, tokens, width.
        """
        self.table = layers.Embedding(*input_shape[1:], name="table")
        self.table.build(input_shape)
        super().build(input_shape)

    def call(self, tokens: keras.KerasTensor) -> keras.KerasTensor:
        """Adds them.

        Args:
            tokens: Batch, tokens, width.
        """
        return tokens + self.table(keras.ops.arange(tokens.shape[1]))


def build(
    image_shape: tuple[int, int, int], num_classes: int, blocks: int, width: int, patch: int
) -> keras.Model:
    """Patches, learned positions, pre-norm blocks of attention and a GELU network, a mean.

    Args:
        image_shape: Height, width and channels.
        num_classes: The number of logits.
        blocks: Pairs of attention and network.
        width: Of a token.
        patch: Side of a token's square.

    Returns:
        The model, not compiled, with Keras's default initializers.
    """
    inputs = keras.Input(image_shape)
    x = layers.Conv2D(width, patch, strides=patch)(inputs)
    x = layers.Reshape((x.shape[1] * x.shape[2], width))(x)
    x = Positions(name="positions")(x)
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, width // 4)(y, y)])
        y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(num_classes)(x))
