"""Every backbone of KerasHub at toy size.

`TOYS` maps a name to a function that builds the backbone; a backbone with several forms has a
name of its own for each (`Gemma3Backbone/vision`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import keras_hub
from keras_hub.src.models.blip2.blip2_custom_opt import BLIP2CustomOPT
from keras_hub.src.models.blip2.blip2_qformer import BLIP2QFormer
from keras_hub.src.models.blip2.blip2_vision_encoder import BLIP2VisionEncoder
from keras_hub.src.models.gemma3.gemma3_vision_encoder import Gemma3VisionEncoder
from keras_hub.src.models.gemma3n.gemma3n_audio_encoder import Gemma3nAudioEncoder
from keras_hub.src.models.gemma4.gemma4_audio_encoder import Gemma4AudioEncoder
from keras_hub.src.models.gemma4.gemma4_vision_encoder import Gemma4VisionEncoder
from keras_hub.src.models.vae.vae_backbone import VAEBackbone

from tests.others.hub_backbones import LENGTH, TEXT, VISION, VOCABULARY

M = keras_hub.models
H = keras_hub.layers


def _of(arguments: dict[str, Any], name: str, **more: Any) -> keras.Model:
    return getattr(M, name.partition("/")[0])(**arguments, **more)


def _vision(name: str, **changes: Any) -> keras.Model:
    return _of({**VISION[name], **changes}, name)


def _text(name: str, **changes: Any) -> keras.Model:
    return _of({**TEXT[name], **changes}, name)


def _unsized_resnet() -> keras.Model:
    return _vision("ResNetBackbone", image_shape=(None, None, 3))


def basnet() -> keras.Model:
    encoder = M.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[2, 2, 2, 2],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )
    return M.BASNetBackbone(encoder, 1, image_shape=(32, 32, 3))


def blip2() -> keras.Model:
    shared = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64, "intermediate_dim": 128}
    vision = BLIP2VisionEncoder(
        image_size=32,
        patch_size=8,
        use_patch_bias=True,
        use_class_token=True,
        use_mha_bias=True,
        use_mlp_bias=True,
        dropout_rate=0.0,
        layer_norm_epsilon=1e-6,
        initializer_range=0.02,
        **shared,
    )
    query = BLIP2QFormer(
        num_query_tokens=4,
        vision_dim=64,
        cross_attention_frequency=1,
        dropout=0.0,
        layer_norm_epsilon=1e-6,
        **shared,
    )
    language = BLIP2CustomOPT(
        vocabulary_size=VOCABULARY,
        num_query_tokens=4,
        dropout=0.0,
        max_sequence_length=2 * LENGTH,
        qformer_hidden_dim=64,
        **shared,
    )
    return M.BLIP2Backbone(vision, query, language)


def pair(name: str, vision: str, text: str, **arguments: Any) -> keras.Model:
    """An image tower and a text tower under one contrastive head."""
    return _of(arguments, name, vision_encoder=_vision(vision), text_encoder=_text(text))


def d_fine() -> keras.Model:
    backbone = _vision(
        "HGNetV2Backbone", image_shape=(None, None, 3), out_features=["stage1", "stage2"]
    )
    return M.DFineBackbone(
        backbone,
        decoder_in_channels=[64, 64],
        encoder_hidden_dim=64,
        num_denoising=0,
        num_labels=8,
        hidden_dim=64,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(64, 64),
        feat_strides=[4, 8],
        num_feature_levels=2,
        encoder_in_channels=[32, 64],
        encode_proj_layers=[1],
        num_attention_heads=4,
        encoder_ffn_dim=128,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=128,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=32,
        num_lqe_layers=2,
        out_features=["stage1", "stage2"],
        image_shape=(64, 64, 3),
        seed=0,
    )


def deeplab() -> keras.Model:
    return M.DeepLabV3Backbone(
        _unsized_resnet(),
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P3",
        upsampling_size=2,
        dilation_rates=[2, 3],
        projection_filters=16,
        image_shape=(64, 64, 3),
    )


def depth_anything() -> keras.Model:
    encoder = _vision("DINOV2Backbone", image_shape=(64, 64, 3), num_layers=4)
    return M.DepthAnythingBackbone(
        encoder,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[16, 16, 32, 32],
        fusion_hidden_dim=32,
        head_hidden_dim=16,
        head_in_index=-1,
        feature_keys=["stage1", "stage2", "stage3", "stage4"],
    )


def flux() -> keras.Model:
    return M.FluxBackbone(
        input_channels=16,
        hidden_size=64,
        mlp_ratio=2.0,
        num_heads=4,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[4, 6, 6],
        theta=10_000,
        use_bias=True,
        guidance_embed=True,
        image_shape=(LENGTH, 16),
        text_shape=(LENGTH, 32),
        image_ids_shape=(LENGTH, 3),
        text_ids_shape=(LENGTH, 3),
        y_shape=(32,),
    )


def gemma3_vision() -> keras.Model:
    vision = Gemma3VisionEncoder(
        image_size=32,
        patch_size=8,
        num_heads=4,
        hidden_dim=64,
        num_layers=2,
        intermediate_dim=128,
        output_dim=64,
        pool_size=2,
    )
    return _text("Gemma3Backbone", vision_encoder=vision)


def gemma3n_multimodal() -> keras.Model:
    audio = Gemma3nAudioEncoder(
        hidden_size=32,
        input_feat_size=16,
        sscp_conv_channel_size=[4, 8],
        sscp_conv_kernel_size=[(3, 3), (3, 3)],
        sscp_conv_stride_size=[(2, 2), (2, 2)],
        sscp_conv_group_norm_eps=1e-5,
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
        gradient_clipping=1.0,
        residual_weight=0.5,
        num_attention_heads=2,
        attention_chunk_size=4,
        num_attention_context_right=0,
        num_attention_context_left=5,
        attention_logit_cap=50.0,
        conv_kernel_size=5,
        reduction_factor=1,
    )
    vision = _vision("MobileNetV5Backbone", image_shape=(64, 64, 3), num_features=48)
    return _text(
        "Gemma3nBackbone",
        vision_encoder_config=vision.get_config(),
        vision_hidden_size=48,
        audio_encoder_config=audio.get_config(),
        audio_hidden_size=32,
    )


def gemma4_vision() -> keras.Model:
    vision = Gemma4VisionEncoder(
        image_size=32,
        patch_size=8,
        pool_size=2,
        num_layers=2,
        num_heads=4,
        head_dim=16,
        num_key_value_heads=4,
        hidden_dim=64,
        intermediate_dim=128,
        output_dim=64,
    )
    return _text("Gemma4Backbone", vision_encoder=vision)


def gemma4_audio() -> keras.Model:
    audio = Gemma4AudioEncoder(
        input_feat_size=8,
        hidden_size=32,
        num_heads=2,
        num_layers=1,
        chunk_size=4,
        context_left=5,
        context_right=0,
        sscp_conv_channels=(4, 2),
        output_proj_dims=None,
        output_dim=64,
    )
    return _text("Gemma4Backbone", audio_encoder=audio, num_audio_tokens_per_clip=4)


def pali_gemma() -> keras.Model:
    return M.PaliGemmaBackbone(
        **TEXT["GemmaBackbone"],
        image_size=32,
        vit_patch_size=8,
        vit_num_heads=4,
        vit_hidden_dim=64,
        vit_num_layers=2,
        vit_intermediate_dim=128,
    )


def parseq() -> keras.Model:
    return M.PARSeqBackbone(
        _vision("ViTBackbone", use_class_token=False),
        vocabulary_size=VOCABULARY,
        max_label_length=LENGTH - 1,
        decoder_hidden_dim=64,
        num_decoder_layers=1,
        num_decoder_heads=4,
        decoder_mlp_dim=128,
        dropout_rate=0.0,
        attention_dropout=0.0,
    )


def retinanet() -> keras.Model:
    encoder = M.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
    )
    return M.RetinaNetBackbone(encoder, 3, 6, use_p5=False, image_shape=(128, 128, 3))


def sam() -> keras.Model:
    encoder = _vision("ViTDetBackbone", image_shape=(64, 64, 3), patch_size=8)
    prompt = H.SAMPromptEncoder(
        hidden_size=32, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_channels=16
    )
    mask = H.SAMMaskDecoder(
        num_layers=1,
        hidden_size=32,
        intermediate_dim=64,
        num_heads=4,
        embedding_dim=32,
        num_multimask_outputs=3,
        iou_head_depth=2,
        iou_head_hidden_dim=32,
    )
    return M.SAMBackbone(encoder, prompt, mask)


def sam3() -> keras.Model:
    shared = {"num_layers": 1, "hidden_dim": 32, "intermediate_dim": 64, "num_heads": 2}
    return M.SAM3PromptableConceptBackbone(
        H.SAM3VisionEncoder(
            image_shape=(56, 56, 3),
            patch_size=14,
            fpn_hidden_dim=32,
            fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=(56, 56, 3),
            window_size=2,
            global_attn_indexes=[0],
            **shared,
        ),
        H.SAM3TextEncoder(vocabulary_size=VOCABULARY, embedding_dim=32, **shared),
        H.SAM3GeometryEncoder(roi_size=7, **shared),
        H.SAM3DetrEncoder(**shared),
        H.SAM3DetrDecoder(image_shape=(56, 56, 3), patch_size=14, num_queries=10, **shared),
        H.SAM3MaskDecoder(num_upsampling_stages=3, hidden_dim=32, num_heads=2),
    )


def segformer() -> keras.Model:
    encoder = _vision(
        "MiTBackbone",
        image_shape=(64, 64, 3),
        layerwise_depths=[1] * 4,
        num_layers=4,
        layerwise_num_heads=[1, 2, 2, 2],
        layerwise_sr_ratios=[4, 2, 1, 1],
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=[16, 32, 48, 64],
    )
    return M.SegFormerBackbone(encoder, 32)


def stable_diffusion3() -> keras.Model:
    filters, blocks = [32, 32, 32, 32], [1, 1, 1, 1]
    clip = {"vocabulary_size": VOCABULARY, "num_layers": 2, "num_heads": 4}
    clip |= {"intermediate_output_index": -2, "max_sequence_length": LENGTH}
    return M.StableDiffusion3Backbone(
        mmdit_patch_size=2,
        mmdit_hidden_dim=64,
        mmdit_num_layers=2,
        mmdit_num_heads=4,
        mmdit_position_size=16,
        mmdit_qk_norm=None,
        mmdit_dual_attention_indices=None,
        vae=VAEBackbone(filters, blocks, filters, blocks, sampler_method="mode", name="vae"),
        clip_l=M.CLIPTextEncoder(
            embedding_dim=32, hidden_dim=32, intermediate_dim=64, name="clip_l", **clip
        ),
        clip_g=M.CLIPTextEncoder(
            embedding_dim=64, hidden_dim=64, intermediate_dim=128, name="clip_g", **clip
        ),
        image_shape=(64, 64, 3),
    )


TOYS: dict[str, Callable[[], keras.Model]] = {
    **{name: partial(_text, name) for name in TEXT},
    **{name: partial(_vision, name) for name in VISION},
    "BASNetBackbone": basnet,
    "BLIP2Backbone": blip2,
    "CLIPBackbone": partial(
        pair, "CLIPBackbone", "CLIPVisionEncoder", "CLIPTextEncoder", projection_dim=32
    ),
    "DFineBackbone": d_fine,
    "DeepLabV3Backbone": deeplab,
    "DepthAnythingBackbone": depth_anything,
    "FluxBackbone": flux,
    "Gemma3Backbone/vision": gemma3_vision,
    "Gemma3nBackbone/multimodal": gemma3n_multimodal,
    "Gemma4Backbone/vision": gemma4_vision,
    "Gemma4Backbone/audio": gemma4_audio,
    "MetaCLIP2Backbone": partial(
        pair,
        "MetaCLIP2Backbone",
        "MetaCLIP2VisionEncoder",
        "MetaCLIP2TextEncoder",
        projection_dim=32,
    ),
    "PaliGemmaBackbone": pali_gemma,
    "PARSeqBackbone": parseq,
    "RetinaNetBackbone": retinanet,
    "SAMBackbone": sam,
    "SAM3PromptableConceptBackbone": sam3,
    "SegFormerBackbone": segformer,
    "SigLIPBackbone": partial(pair, "SigLIPBackbone", "SigLIPVisionEncoder", "SigLIPTextEncoder"),
    "StableDiffusion3Backbone": stable_diffusion3,
}
