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
    shortcut: str = "B",
    weight_decay: float = 0.0,
) -> keras.Model:
    """Builds a ResNet of `6n + 2` layers, which ends in logits.

    Three stages of `n` basic blocks each work on maps of full, half and quarter size with
    `width`, `2 * width` and `4 * width` channels.

    Args:
        input_shape: Height, width and channels of an image.
        num_classes: The number of logits.
        kernel_initializer: The id that every convolution and the dense layer get. An id and
            not an object: each layer then builds an initializer, with a seed, of its own.
        depth: The number of layers with weights, shortcuts not counted.
        width: Channels of the first stage.
        batch_norm: Whether a batch normalization follows each convolution. Without it the
            convolutions get a bias.
        shortcut: What a shortcut is where the shape changes. "A": the identity, every second
            row and column of it, with channels of zeros around; it has no weights. "B": a 1×1
            convolution.
        weight_decay: λ of the penalty λ/2 · Σ w² on every kernel.

    Returns:
        The model, not compiled.

    Raises:
        ValueError: When `depth` is not `6n + 2` with `n` of at least 1, or `shortcut` is neither.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...), got {depth}.")
    if shortcut not in ("A", "B"):
        raise ValueError(f'shortcut must be "A" or "B", got {shortcut!r}.')
    regularizer = keras.regularizers.L2(weight_decay / 2) if weight_decay else None
    block = _BlockBuilder(kernel_initializer, batch_norm, shortcut, regularizer)
    inputs = keras.Input(input_shape, name="image")
    x = block.convolution(inputs, width, kernel_size=3, strides=1, name="stem")
    x = layers.Activation("relu", name="stem_relu")(x)
    for stage in range(3):
        for index in range((depth - 2) // 6):
            strides = 2 if stage > 0 and index == 0 else 1
            x = block(x, width * 2**stage, strides, name=f"stage{stage + 1}_block{index + 1}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(
        num_classes,
        kernel_initializer=kernel_initializer,
        kernel_regularizer=regularizer,
        name="logits",
    )(x)
    return keras.Model(inputs, logits, name=f"resnet{depth}")


class _BlockBuilder:
    """Adds basic blocks to a graph, all with the same initializer."""

    def __init__(
        self,
        kernel_initializer: str,
        batch_norm: bool,
        shortcut: str,
        regularizer: keras.regularizers.Regularizer | None,
    ) -> None:
        self._kernel_initializer = kernel_initializer
        self._batch_norm = batch_norm
        self._shortcut = shortcut
        self._regularizer = regularizer

    def __call__(
        self, x: keras.KerasTensor, filters: int, strides: int, name: str
    ) -> keras.KerasTensor:
        shortcut = x
        if strides != 1 or x.shape[-1] != filters:
            if self._shortcut == "A":
                shortcut = _identity(x, filters, strides)
            else:
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
            kernel_regularizer=self._regularizer,
            name=name,
        )(x)
        if self._batch_norm:
            # Keras' momentum of 0.99 lags behind in trainings of a few hundred steps.
            x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return x


def _identity(x: keras.KerasTensor, filters: int, strides: int) -> keras.KerasTensor:
    missing = filters - x.shape[-1]
    channels = (missing // 2, missing - missing // 2)
    return keras.ops.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), channels))
