"""The networks of `signal_accuracy.py`: 20 convolutions in a row, and blocks after publications."""

from collections.abc import Callable
from typing import Any

import keras
from families.sequences import Positions, RMSNorm, grouped_attention

L = keras.layers


def plain(
    width: int, pool: Callable[[], keras.Layer] | None, padding: str = "same", size: int = 32
) -> keras.Model:
    """20 convolutions with ReLU, pooled (or strided) after 5, 10 and 15."""
    x = inputs = keras.Input((size, size, 3))
    for number in range(1, 21):
        last = number in (5, 10, 15)
        # 'valid' windows would eat the map up: every fifth keeps to it.
        kind = padding if padding == "same" or number % 5 == 1 else "same"
        strides = 2 if last and pool is None else 1
        x = L.Conv2D(width, 3, strides=strides, padding=kind, activation="relu")(x)
        if last and pool is not None:
            x = pool()(x)
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(width)(x))


def global_max(width: int) -> keras.Model:
    """Ten convolutions, then the maximum over all positions."""
    x = inputs = keras.Input((16, 16, 3))
    for number in range(1, 11):
        x = L.Conv2D(width, 3, padding="same", activation="relu")(x)
        if number == 5:
            x = L.MaxPooling2D(2)(x)
    return keras.Model(inputs, L.Dense(width)(L.GlobalMaxPooling2D()(x)))


def vgg16(width: int) -> keras.Model:
    """The body of VGG16 at 64×64; `width` has no effect."""
    del width
    return keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))


def resnet20(width: int, normalized: bool) -> keras.Model:
    """He et al.'s ResNet-20 for 32×32 images, `width` channels in its last stage."""

    def normalize(x: Any) -> Any:
        return L.BatchNormalization()(x) if normalized else x

    inputs = keras.Input((32, 32, 3))
    x = L.Conv2D(width // 4, 3, padding="same")(inputs)
    x = L.ReLU()(normalize(x))
    for stage in range(3):
        channels = width // 4 * 2**stage
        for block in range(3):
            strides = 2 if stage and not block else 1
            y = L.Conv2D(channels, 3, strides=strides, padding="same")(x)
            y = L.ReLU()(normalize(y))
            y = normalize(L.Conv2D(channels, 3, padding="same")(y))
            if strides == 2:
                x = normalize(L.Conv2D(channels, 1, strides=2)(x))
            x = L.ReLU()(L.Add()([x, y]))
    return keras.Model(inputs, L.Dense(width)(L.GlobalAveragePooling2D()(x)))


def separable(width: int, between: str | None = None) -> keras.Model:
    """Depthwise and pointwise convolutions in turn; MobileNet has an activation between them."""
    inputs = keras.Input((32, 32, 3))
    x = L.Conv2D(width, 3, strides=2, padding="same", activation="relu")(inputs)
    for number in range(8):
        strides = 2 if number in (2, 5) else 1
        x = L.DepthwiseConv2D(3, strides=strides, padding="same", activation=between)(x)
        x = L.Conv2D(width, 1, activation="relu")(x)
    return keras.Model(inputs, L.Dense(width)(L.GlobalAveragePooling2D()(x)))


def densenet(width: int) -> keras.Model:
    """Three blocks of four concatenating layers, averaged between them."""
    inputs = keras.Input((32, 32, 3))
    x = L.Conv2D(width, 3, padding="same")(inputs)
    for block in range(3):
        for _ in range(4):
            y = L.Conv2D(width // 2, 3, padding="same")(L.ReLU()(x))
            x = L.Concatenate()([x, y])
        if block < 2:
            x = L.AveragePooling2D(2)(L.Conv2D(width, 1)(L.ReLU()(x)))
    return keras.Model(inputs, L.Dense(width)(L.GlobalAveragePooling2D()(L.ReLU()(x))))


def perceptron(width: int, activation: str) -> keras.Model:
    """54 hidden layers."""
    hidden = [L.Dense(width, activation=activation) for _ in range(54)]
    return keras.Sequential([keras.Input((width,)), *hidden, L.Dense(width)])


def transformer(width: int) -> keras.Model:
    """Six pre-norm blocks of attention and a GELU network on 32 tokens."""
    x = inputs = keras.Input((32, width))
    for _ in range(6):
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.MultiHeadAttention(4, width // 4)(y, y)])
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.Dense(width)(L.Dense(4 * width, activation="gelu")(y))])
    x = L.GlobalAveragePooling1D()(L.LayerNormalization()(x))
    return keras.Model(inputs, L.Dense(width)(x))


def vit(width: int) -> keras.Model:
    """Patches of 4×4 with learned positions, and six pre-norm blocks."""
    inputs = keras.Input((32, 32, 3))
    x = L.Reshape((64, width))(L.Conv2D(width, 4, strides=4)(inputs))
    x = Positions(0.02)(x)
    for _ in range(6):
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.MultiHeadAttention(4, width // 4)(y, y)])
        y = L.LayerNormalization()(x)
        x = L.Add()([x, L.Dense(width)(L.Dense(4 * width, activation="gelu")(y))])
    return keras.Model(
        inputs, L.Dense(width)(L.GlobalAveragePooling1D()(L.LayerNormalization()(x)))
    )


def llama(width: int) -> keras.Model:
    """Four blocks of grouped-query attention with rotary positions and SwiGLU, on 32 tokens."""
    x = inputs = keras.Input((32, width))
    for _ in range(4):
        x = x + grouped_attention(RMSNorm()(x))
        y = RMSNorm()(x)
        gate = L.Dense(2 * width, activation="silu", use_bias=False)(y)
        y = gate * L.Dense(2 * width, use_bias=False)(y)
        x = x + L.Dense(width, use_bias=False)(y)
    return keras.Model(inputs, L.Dense(width, use_bias=False)(RMSNorm()(x)))


def unet(width: int) -> keras.Model:
    """Three scales, two convolutions each way, max pooling and transposed convolutions."""
    x = inputs = keras.Input((32, 32, 3))
    skips = []
    for filters in (width // 4, width // 2):
        for _ in range(2):
            x = L.Conv2D(filters, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = L.MaxPooling2D(2)(x)
    for _ in range(2):
        x = L.Conv2D(width, 3, padding="same", activation="relu")(x)
    for filters, skip in zip((width // 2, width // 4), reversed(skips), strict=True):
        x = L.Concatenate()([L.Conv2DTranspose(filters, 2, strides=2)(x), skip])
        for _ in range(2):
            x = L.Conv2D(filters, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, L.Conv2D(8, 1)(x))


def lstms(width: int) -> keras.Model:
    """Three LSTM layers on 16 steps, with a Dense layer behind each."""
    x = inputs = keras.Input((16, width))
    for number in range(3):
        x = L.LSTM(width, return_sequences=number < 2)(x)
        x = L.Dense(width)(x)
    return keras.Model(inputs, x)


def application(name: str, **options: Any) -> Callable[[int], keras.Model]:
    """A model of `keras.applications` at 64×64 with ten classes; `width` has no effect."""

    def make(width: int) -> keras.Model:
        del width
        return getattr(keras.applications, name)(
            weights=None,
            input_shape=(64, 64, 3),
            classes=10,
            classifier_activation=None,
            **options,
        )

    return make


ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "selu", "leaky_relu")
NETWORKS: dict[str, Callable[[int], keras.Model]] = {
    "plain20-max": lambda w: plain(w, lambda: L.MaxPooling2D(2)),
    "plain20-average": lambda w: plain(w, lambda: L.AveragePooling2D(2)),
    "plain20-max3/2": lambda w: plain(w, lambda: L.MaxPooling2D(3, 2, padding="same")),
    "plain20-average3/2": lambda w: plain(w, lambda: L.AveragePooling2D(3, 2, padding="same")),
    "plain20-strides": lambda w: plain(w, None),
    "plain20-valid": lambda w: plain(w, lambda: L.MaxPooling2D(2), "valid", 48),
    "global-max": global_max,
    "vgg16": vgg16,
    "resnet20": lambda w: resnet20(w, False),
    "resnet20-batchnorm": lambda w: resnet20(w, True),
    "separable": separable,
    "mobilenet": lambda w: separable(w, "relu"),
    "densenet": densenet,
    **{f"dense54-{name}": lambda w, name=name: perceptron(w, name) for name in ACTIVATIONS},
    "transformer": transformer,
    "vit": vit,
    "llama": llama,
    "unet": unet,
    "lstms": lstms,
    "convnext": application("ConvNeXtTiny", include_preprocessing=False),
    "resnet50-batchnorm": application("ResNet50"),
    "efficientnetv2-batchnorm": application("EfficientNetV2B0", include_preprocessing=False),
}
