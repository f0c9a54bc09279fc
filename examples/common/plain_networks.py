"""The plain networks F34 and F50 of Henmi et al. (arXiv 2008.06885): no shortcuts, no norms."""

from __future__ import annotations

import keras
from keras import layers

#: Channels at full width, and the number of blocks, of each stage.
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
NAMES = ("F34", "F50")


def build(
    name: str, input_shape: tuple[int, int, int], num_classes: int, width: int = 64
) -> keras.Model:
    """Builds a network that ends in logits.

    Input block: 7×7 convolution of stride 2, 3×3 max pooling of stride 2. Then four stages of
    blocks, the first block of a later stage with stride 2; F34's block is two 3×3 convolutions,
    F50's a 1×1, a 3×3 with the stride, and a 1×1 with four times the channels. Then global
    average pooling and a dense layer. ReLU follows every convolution. Padding is explicit and
    the same on all sides, as in the source; Keras' "same" pads strided windows unevenly.

    Args:
        name: "F34" or "F50".
        input_shape: Height, width and channels.
        num_classes: How many logits.
        width: Channels of the first stage; the others have as many more as in the source.

    Returns:
        The model, not compiled, with Keras' default initializer.

    Raises:
        ValueError: There is no such network.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}.")
    inputs = keras.Input(input_shape, name="image")
    x = _convolution(inputs, width, 7, 2, "input")
    x = layers.ZeroPadding2D(1, name="input_pool_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="input_pool")(x)
    for stage, (full, blocks) in enumerate(STAGES, start=1):
        filters = full * width // STAGES[0][0]
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            prefix = f"stage{stage}_block{block}"
            if name == "F34":
                x = _convolution(x, filters, 3, stride, f"{prefix}_conv1")
                x = _convolution(x, filters, 3, 1, f"{prefix}_conv2")
            else:
                x = _convolution(x, filters, 1, 1, f"{prefix}_conv1")
                x = _convolution(x, filters, 3, stride, f"{prefix}_conv2")
                x = _convolution(x, 4 * filters, 1, 1, f"{prefix}_conv3")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name=name)


def _convolution(
    x: keras.KerasTensor, filters: int, window: int, stride: int, name: str
) -> keras.KerasTensor:
    if window > 1:
        x = layers.ZeroPadding2D(window // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(filters, window, strides=stride, activation="relu", name=name)(x)
