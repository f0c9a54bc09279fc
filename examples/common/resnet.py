"""The residual network for small images of He et al. (2016), section 4.2."""

from __future__ import annotations

import keras
from keras import layers


def build_resnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    kernel_initializer: str,
    depth: int = 8,
    width: int = 16,
    batch_norm: bool = True,
) -> keras.Model:
    """Builds a ResNet of `6n + 2` layers, which ends in logits.

    Three stages of `n` basic blocks each work on maps of full, half and quarter size with
    `width`, `2 * width` and `4 * width` channels. Shortcuts that change the shape are 1×1
    convolutions.

    Args:
        input_shape: Height, width and channels of an image.
        num_classes: How many logits to put out.
        kernel_initializer: The id that every convolution and the dense layer get. An id and
            not an object: each layer then builds an initializer, with a seed, of its own.
        depth: The number of layers with weights, shortcuts not counted.
        width: Channels of the first stage.
        batch_norm: Whether a batch normalization follows each convolution. Without it the
            convolutions get a bias.

    Returns:
        The model, not compiled.

    Raises:
        ValueError: When `depth` is not `6n + 2` with `n` of at least 1.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...), got {depth}.")
    block = _BlockBuilder(kernel_initializer, batch_norm)
    inputs = keras.Input(input_shape, name="image")
    x = block.convolution(inputs, width, kernel_size=3, strides=1, name="stem")
    x = layers.Activation("relu", name="stem_relu")(x)
    for stage in range(3):
        for index in range((depth - 2) // 6):
            strides = 2 if stage > 0 and index == 0 else 1
            x = block(x, width * 2**stage, strides, name=f"stage{stage + 1}_block{index + 1}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(num_classes, kernel_initializer=kernel_initializer, name="logits")(x)
    return keras.Model(inputs, logits, name=f"resnet{depth}")


class _BlockBuilder:
    """Adds basic blocks to a graph, all with the same initializer."""

    def __init__(self, kernel_initializer: str, batch_norm: bool) -> None:
        self._kernel_initializer = kernel_initializer
        self._batch_norm = batch_norm

    def __call__(
        self, x: keras.KerasTensor, filters: int, strides: int, name: str
    ) -> keras.KerasTensor:
        shortcut = x
        if strides != 1 or x.shape[-1] != filters:
            shortcut = self.convolution(x, filters, 1, strides, name=f"{name}_shortcut")
        x = self.convolution(x, filters, 3, strides, name=f"{name}_conv1")
        x = layers.Activation("relu", name=f"{name}_relu1")(x)
        x = self.convolution(x, filters, 3, 1, name=f"{name}_conv2")
        x = layers.Add(name=f"{name}_add")([shortcut, x])
        return layers.Activation("relu", name=f"{name}_relu2")(x)

    def convolution(
        self, x: keras.KerasTensor, filters: int, kernel_size: int, strides: int, name: str
    ) -> keras.KerasTensor:
        x = layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=not self._batch_norm,
            kernel_initializer=self._kernel_initializer,
            name=name,
        )(x)
        if self._batch_norm:
            # Keras' momentum of 0.99 lags behind in trainings of a few hundred steps.
            x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return x
