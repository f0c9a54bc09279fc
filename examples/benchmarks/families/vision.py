"""Convolutional families at toy size."""

from typing import Any

import keras
from keras import ops

from .network import Network, conv, model

L = keras.layers


def _head(x: Any, units: int = 32) -> Any:
    return L.Dense(units)(L.GlobalAveragePooling2D()(x))


def _u_net(x: Any) -> Any:
    skips = []
    for filters in (32, 48):
        x = conv(conv(x, filters), filters)
        skips.append(x)
        x = L.MaxPooling2D(2)(x)
    x = conv(x, 64)
    for filters, skip in zip((48, 32), reversed(skips), strict=True):
        x = L.Conv2DTranspose(filters, 2, strides=2)(x)
        x = conv(L.Concatenate()([x, skip]), filters)
    return L.Conv2D(8, 1)(x)


def _autoencoder(x: Any) -> Any:
    for filters in (32, 64):
        x = L.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = L.Dense(48)(L.Flatten()(x))
    x = L.Reshape((4, 4, 64))(L.Dense(4 * 4 * 64, activation="relu")(x))
    for filters in (64, 32):
        x = L.Conv2DTranspose(filters, 3, strides=2, padding="same", activation="relu")(x)
    return L.Conv2D(3, 3, padding="same")(x)


def _generator(x: Any) -> Any:
    x = L.Reshape((4, 4, 96))(L.Dense(4 * 4 * 96, use_bias=False)(x))
    x = L.ReLU()(L.BatchNormalization()(x))
    for filters in (64, 32):
        x = L.Conv2DTranspose(filters, 5, strides=2, padding="same", use_bias=False)(x)
        x = L.ReLU()(L.BatchNormalization()(x))
    return L.Conv2DTranspose(3, 5, strides=2, padding="same")(x)


def _discriminator(x: Any) -> Any:
    for filters in (32, 64, 96):
        x = L.Conv2D(filters, 5, strides=2, padding="same")(x)
        x = L.Dropout(0.3)(L.LeakyReLU(0.2)(x))
    return L.Dense(1)(L.Flatten()(x))


class LayerScale(L.Layer):
    """ConvNeXt's weight per channel at the end of a block."""

    def __init__(self, value: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = value

    def build(self, input_shape: Any) -> None:
        """Makes the weight."""
        constant = keras.initializers.Constant(self.value)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=constant, name="gamma")

    def call(self, x: Any) -> Any:
        """The product."""
        return x * self.gamma


def _convnext(x: Any) -> Any:
    x = L.LayerNormalization()(L.Conv2D(48, 4, strides=4)(x))
    for _ in range(3):
        y = L.LayerNormalization()(L.DepthwiseConv2D(7, padding="same")(x))
        y = L.Dense(48)(L.Dense(192, activation="gelu")(y))
        x = x + LayerScale(0.1)(y)
    return L.Dense(32)(L.LayerNormalization()(L.GlobalAveragePooling2D()(x)))


def _excite(x: Any, ratio: int, inner: Any = "relu", gate: Any = "sigmoid") -> Any:
    y = L.GlobalAveragePooling2D(keepdims=True)(x)
    y = L.Conv2D(max(x.shape[-1] // ratio, 8), 1, activation=inner)(y)
    return L.Multiply()([x, L.Conv2D(x.shape[-1], 1, activation=gate)(y)])


def _inverted(
    x: Any, filters: int, strides: int, activation: str, excite: bool, gate: str = "sigmoid"
) -> Any:
    y = conv(x, 4 * x.shape[-1], 1, activation=activation)
    y = L.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(y)
    y = L.Activation(activation)(L.BatchNormalization()(y))
    if excite:
        y = _excite(y, 4, "relu" if gate == "hard_sigmoid" else activation, gate)
    y = conv(y, filters, 1, activation=None)
    return L.Add()([x, y]) if strides == 1 and x.shape[-1] == filters else y


def _inverted_network(activation: str, excite: bool, gate: str = "sigmoid") -> Network:
    def body(x: Any) -> Any:
        x = conv(x, 16, 3, 2, activation)
        for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 1)):
            x = _inverted(x, filters, strides, activation, excite, gate)
        return _head(conv(x, 96, 1, activation=activation))

    return Network(lambda: model((32, 32, 3), body), examples=32)


def _mobilenet(x: Any) -> Any:
    x = conv(x, 32, 3, 2)
    for filters, strides in ((48, 1), (64, 2), (64, 1), (96, 2)):
        x = L.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x)
        x = conv(L.ReLU()(L.BatchNormalization()(x)), filters, 1)
    return _head(x)


def _shuffle(x: Any, groups: int) -> Any:
    side, channels = x.shape[1], x.shape[-1]
    x = L.Reshape((side, side, groups, channels // groups))(x)
    return L.Reshape((side, side, channels))(L.Permute((1, 2, 4, 3))(x))


def _shufflenet(x: Any) -> Any:
    x = conv(x, 48, 3, 2)
    for _ in range(3):
        y = L.Conv2D(48, 1, groups=3, use_bias=False)(x)
        y = _shuffle(L.ReLU()(L.BatchNormalization()(y)), 3)
        y = L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(y))
        y = L.BatchNormalization()(L.Conv2D(48, 1, groups=3, use_bias=False)(y))
        x = L.ReLU()(L.Add()([x, y]))
    return _head(x)


def _vgg(x: Any) -> Any:
    for filters, count in ((32, 2), (64, 2), (64, 3)):
        for _ in range(count):
            x = L.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = L.MaxPooling2D(2)(x)
    x = L.Dense(96, activation="relu")(L.Flatten()(x))
    return L.Dense(32)(L.Dropout(0.5)(x))


def _resnet_stem(x: Any) -> Any:
    x = L.ZeroPadding2D(3)(x)
    x = L.Conv2D(32, 7, strides=2, use_bias=False)(x)
    return L.ReLU()(L.BatchNormalization()(x))


def _resnet(x: Any) -> Any:
    x = L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(_resnet_stem(x)))
    for filters, strides in ((32, 1), (32, 1), (64, 2), (64, 1)):
        y = conv(conv(x, filters // 2, 1, strides), filters // 2)
        y = conv(y, filters, 1, activation=None)
        if strides > 1:
            x = conv(x, filters, 1, strides, None)
        x = L.ReLU()(L.Add()([x, y]))
    return _head(x)


def _resnet_v2(x: Any) -> Any:
    x = L.Conv2D(32, 7, strides=2)(L.ZeroPadding2D(3)(x))
    x = L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(x))
    for _ in range(4):
        y = L.ReLU()(L.BatchNormalization()(x))
        y = L.Conv2D(32, 3, padding="same")(y)
        y = L.ReLU()(L.BatchNormalization()(y))
        x = L.Add()([x, L.Conv2D(32, 3, padding="same")(y)])
    return _head(L.ReLU()(L.BatchNormalization()(x)))


def _resnext(x: Any) -> Any:
    x = conv(x, 64)
    for _ in range(3):
        y = conv(x, 64, 1)
        y = L.Conv2D(64, 3, padding="same", groups=4, use_bias=False)(y)
        y = conv(L.ReLU()(L.BatchNormalization()(y)), 64, 1, activation=None)
        x = L.ReLU()(L.Add()([x, y]))
    return _head(x)


def _inception(x: Any) -> Any:
    x = L.Conv2D(48, 3, padding="same", activation="relu")(x)
    for _ in range(2):
        one = L.Conv2D(24, 1, activation="relu")(x)
        three = L.Conv2D(24, 1, activation="relu")(x)
        three = L.Conv2D(32, 3, padding="same", activation="relu")(three)
        five = L.Conv2D(16, 1, activation="relu")(x)
        five = L.Conv2D(24, 5, padding="same", activation="relu")(five)
        pooled = L.MaxPooling2D(3, 1, padding="same")(x)
        pooled = L.Conv2D(16, 1, activation="relu")(pooled)
        x = L.Concatenate()([one, three, five, pooled])
    return _head(x)


def _densenet(x: Any) -> Any:
    x = L.Conv2D(32, 3, padding="same")(x)
    for block in range(2):
        for _ in range(3):
            y = L.Conv2D(64, 1)(L.ReLU()(L.BatchNormalization()(x)))
            y = L.Conv2D(16, 3, padding="same")(L.ReLU()(L.BatchNormalization()(y)))
            x = L.Concatenate()([x, y])
        if not block:
            x = L.Conv2D(40, 1)(L.ReLU()(L.BatchNormalization()(x)))
            x = L.AveragePooling2D(2)(x)
    return _head(L.ReLU()(L.BatchNormalization()(x)))


def _squeezenet(x: Any) -> Any:
    x = L.Conv2D(48, 3, strides=2, padding="same", activation="relu")(x)
    for filters in (48, 64, 96):
        y = L.Conv2D(filters // 4, 1, activation="relu")(x)
        left = L.Conv2D(filters // 2, 1, activation="relu")(y)
        right = L.Conv2D(filters // 2, 3, padding="same", activation="relu")(y)
        x = L.Concatenate()([left, right])
    return L.GlobalAveragePooling2D()(L.Conv2D(32, 1)(L.Dropout(0.5)(x)))


def _nasnet(x: Any) -> Any:
    def separable(x: Any, size: int) -> Any:
        x = L.SeparableConv2D(48, size, padding="same", use_bias=False)(L.ReLU()(x))
        return L.BatchNormalization()(x)

    x = before = conv(x, 48, activation=None)
    for _ in range(2):
        left = L.Add()([separable(x, 5), separable(before, 3)])
        right = L.Add()([L.AveragePooling2D(3, 1, padding="same")(x), before])
        third = L.Add()([separable(x, 3), x])
        x, before = conv(L.ReLU()(L.Concatenate()([left, right, third])), 48, 1, activation=None), x
    return _head(L.ReLU()(x))


def _pyramid() -> keras.Model:
    """FPN: top-down path with nearest upsampling, an output at each level."""
    inputs = keras.Input((32, 32, 3))
    x, levels = conv(inputs, 32, 3, 2), []
    for filters in (32, 48, 64):
        x = conv(x, filters, 3, 2)
        levels.append(x)
    top = L.Conv2D(48, 1)(levels[-1])
    outputs = [L.Conv2D(48, 3, padding="same")(top)]
    for level in reversed(levels[:-1]):
        top = L.Add()([L.UpSampling2D(2)(top), L.Conv2D(48, 1)(level)])
        outputs.append(L.Conv2D(48, 3, padding="same")(top))
    return keras.Model(inputs, outputs)


def _deeplab(x: Any) -> Any:
    x = conv(conv(x, 32, 3, 2), 48, 3, 2)
    pooled = L.GlobalAveragePooling2D(keepdims=True)(x)
    pooled = L.Conv2D(32, 1, activation="relu")(pooled)
    side = x.shape[1]
    branches = [L.UpSampling2D(side, interpolation="bilinear")(pooled), conv(x, 32, 1)]
    for rate in (2, 3):
        y = L.Conv2D(32, 3, padding="same", dilation_rate=rate, use_bias=False)(x)
        branches.append(L.ReLU()(L.BatchNormalization()(y)))
    x = conv(L.Concatenate()(branches), 48, 1)
    return L.UpSampling2D(4, interpolation="bilinear")(L.Conv2D(8, 1)(x))


def _gated_pixels(x: Any) -> Any:
    """PixelCNN's vertical stack: padded on top, gated by tanh times sigmoid."""
    for _ in range(3):
        y = L.ZeroPadding2D(((2, 0), (1, 1)))(x)
        y = L.Conv2D(96, (3, 3))(y)
        a, b = ops.split(y, 2, axis=-1)
        x = ops.tanh(a) * ops.sigmoid(b)
    return L.Conv2D(8, 1)(x)


def _super_resolution(x: Any) -> Any:
    """ESPCN: channels become pixels."""
    x = L.Conv2D(48, 5, padding="same", activation="tanh")(x)
    x = L.Conv2D(32, 3, padding="same", activation="tanh")(x)
    x = L.Conv2D(3 * 4, 3, padding="same")(x)
    x = ops.reshape(x, (-1, 12, 12, 2, 2, 3))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 24, 24, 3))


def _xception(x: Any) -> Any:
    x = conv(x, 48, 3, 2)
    for _ in range(2):
        y = x
        for _ in range(2):
            y = L.SeparableConv2D(48, 3, padding="same", use_bias=False)(L.ReLU()(y))
            y = L.BatchNormalization()(y)
        y = L.MaxPooling2D(3, 2, padding="same")(y)
        x = L.Add()([y, conv(x, 48, 1, 2, None)])
    return _head(x)


def _image(body: Any, side: int = 16, channels: int = 3, examples: int = 16) -> Network:
    return Network(lambda: model((side, side, channels), body), examples=examples)


VISION: dict[str, Network] = {
    "U-Net": _image(_u_net),
    "autoencoder": _image(_autoencoder),
    "DCGAN generator": Network(lambda: model((64,), _generator), examples=32),
    "DCGAN discriminator": _image(_discriminator, 32),
    "ConvNeXt": _image(_convnext, 32),
    "MobileNet": _image(_mobilenet, 32),
    "MobileNetV2": _inverted_network("relu6", False),
    "MobileNetV3": _inverted_network("hard_swish", True, "hard_sigmoid"),
    "EfficientNet": _inverted_network("swish", True),
    "ShuffleNet": _image(_shufflenet, 12),
    "VGG": _image(_vgg),
    "ResNet": _image(_resnet, 32),
    "ResNetV2": _image(_resnet_v2, 32),
    "ResNeXt": _image(_resnext, 8),
    "Inception": _image(_inception),
    "DenseNet": _image(_densenet),
    "SqueezeNet": _image(_squeezenet, 32),
    "NASNet": _image(_nasnet, 12),
    "Xception": _image(_xception, 32, examples=32),
    "FPN": Network(_pyramid),
    "DeepLab": _image(_deeplab, 32, examples=32),
    "PixelCNN": _image(_gated_pixels, 12, 48),
    "ESPCN": _image(_super_resolution, 12),
}
