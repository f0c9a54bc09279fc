"""Models of PyPI packages for Keras 3 at toy size: medicai (medical images) and keras-tcn."""

from collections.abc import Callable
from typing import Any

import keras
import medicai.models as medicai
import tcn

SIDE = (64, 64, 3)


def _tcn(**options: Any) -> keras.Model:
    inputs = keras.Input((24, 16))
    layer = tcn.TCN(48, dilations=(1, 2, 4), dropout_rate=0.1, **options)
    return keras.Model(inputs, keras.layers.Dense(8)(layer(inputs)))


def _resnet(**options: Any) -> keras.Model:
    return medicai.ResNetBackbone(
        input_shape=SIDE,
        num_blocks=[1, 1, 1, 1],
        num_filters=[64, 64, 96, 96],
        **{"block_type": "basic_block", **options},
    )


def _unet(kind: Any, shape: tuple[int, ...] = SIDE, **options: Any) -> keras.Model:
    encoder = medicai.ResNetBackbone(
        input_shape=shape,
        num_blocks=[1, 1, 1, 1],
        num_filters=[64, 64, 96, 96],
        block_type="basic_block",
    )
    head = {"decoder_filters": (64, 48, 32, 32, 16), "classifier_activation": None}
    return kind(encoder=encoder, **{**head, **options})


def _vit() -> keras.Model:
    return medicai.ViTBackbone(
        input_shape=(32, 32, 3),
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        use_class_token=True,
    )


def _mit() -> keras.Model:
    return medicai.MiTBackbone(
        input_shape=SIDE,
        max_drop_path_rate=0.0,
        project_dim=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
    )


MODELS: dict[str, Callable[[], keras.Model]] = {
    "TCN": _tcn,
    "TCN/layer norm": lambda: _tcn(use_layer_norm=True),
    "TCN/batch norm": lambda: _tcn(use_batch_norm=True, return_sequences=True),
    "ResNet": _resnet,
    "ResNet/squeeze": lambda: _resnet(block_type="bottleneck_block", se_block=True),
    "DenseNet": lambda: medicai.DenseNetBackbone(
        blocks=[2, 2, 2], input_shape=SIDE, growth_rate=16, name="densenet"
    ),
    "ConvNeXtV2": lambda: medicai.ConvNeXtBackboneV2(
        depths=[1, 1, 1, 1], projection_dims=[24, 32, 48, 64], input_shape=SIDE, name="convnext"
    ),
    "ViT": _vit,
    "MiT": _mit,
    "UNet": lambda: _unet(medicai.UNet, decoder_normalization="batch"),
    "UNet/3D": lambda: _unet(medicai.UNet, (32, 32, 32, 1)),
    "AttentionUNet": lambda: _unet(medicai.AttentionUNet, input_shape=SIDE),
    "UNetPlusPlus": lambda: _unet(medicai.UNetPlusPlus),
    "UPerNet": lambda: _unet(medicai.UPerNet, decoder_filters=48),
    "DeepLabV3Plus": lambda: medicai.DeepLabV3Plus(
        encoder=_resnet(),
        decoder_channels=48,
        decoder_dilation_rates=(1, 2, 3),
        projection_filters=16,
        classifier_activation=None,
    ),
    "SegFormer": lambda: medicai.SegFormer(
        encoder=_mit(), decoder_head_embedding_dim=48, classifier_activation=None
    ),
}
