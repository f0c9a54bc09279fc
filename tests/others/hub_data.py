"""Inputs for the backbones of `hub_models`, and a fixed length for those that have none."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tests.others.hub_backbones import LENGTH, VOCABULARY

# Unknown sizes are LENGTH, except for these: by toy and input, the shape of an example.
_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "Gemma3Backbone/vision": {"images": (1, 32, 32, 3), "vision_indices": (4,)},
    "Gemma3nBackbone/multimodal": {
        "images": (1, 64, 64, 3),
        "input_features": (1, 16, 16),
        "input_features_mask": (1, 16),
    },
    "Gemma4Backbone/audio": {
        "audio_mel": (1, 16, 8),
        "audio_mel_mask": (1, 16),
        "audio_indices": (4,),
    },
    "Gemma4Backbone/vision": {
        "pixel_values": (1, 16, 192),
        "pixel_position_ids": (1, 16, 2),
        "vision_indices": (4,),
    },
    "MoonshineBackbone": {"encoder_input_values": (4000, 1), "encoder_padding_mask": (4000,)},
    "SAMBackbone": {"points": (1, 2), "labels": (1,), "boxes": (1, 2, 2), "masks": (1, 32, 32, 1)},
    "SAM3PromptableConceptBackbone": {"boxes": (1, 5), "box_labels": (1,)},
    "WhisperBackbone": {"encoder_features": (2 * LENGTH, 16)},
}


# Examples in a batch, if not 8: SAM3 broadcasts a mask of (batch, tokens) over heads and rows of
# tokens, so that it takes as many examples as tokens. BASNet normalizes maps of one position.
EXAMPLES = {"BASNetBackbone": 16, "SAM3PromptableConceptBackbone": 2}
# Draws, if not as many as the caller wants: BASNet's decoder is 50 million weights at any size.
DRAWS = {"BASNetBackbone": 16}


def shape_of(toy: str, tensor: Any) -> tuple[int, ...]:
    """The shape of an example for one of a toy's inputs."""
    fixed = _SHAPES.get(toy, {}).get(tensor.name)
    return fixed or tuple(LENGTH if n is None else n for n in tensor.shape[1:])


def at_length(toy: str, model: keras.Model) -> keras.Model:
    """The model on inputs of known sizes."""

    def fixed(tensor: Any) -> Any:
        return keras.Input(shape_of(toy, tensor), dtype=tensor.dtype, name=tensor.name)

    inputs = keras.tree.map_structure(fixed, model.input)
    return keras.Model(inputs, model(inputs))


def has_unknown_length(model: keras.Model) -> bool:
    """Whether an input has an unknown size beside the batch."""
    return any(None in t.shape[1:] for t in model.inputs)


def data_for(toy: str, model: keras.Model) -> Callable[[np.random.Generator, int], Any]:
    """Draws inputs: tokens and white noise, nothing masked."""

    def data(rng: np.random.Generator, count: int) -> Any:
        return keras.tree.map_structure(
            lambda t: _values(t.name, t.dtype, (count, *shape_of(toy, t)), rng), model.input
        )

    return data


def _values(name: str, dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if "token_ids" in name:
        return rng.integers(1, VOCABULARY, shape).astype(dtype)
    if name in ("vision_mask", "audio_mask"):  # the places of the four tokens of an image
        return np.broadcast_to(np.arange(shape[-1]) < 4, shape).astype(dtype)
    if name == "input_features_mask":  # which is True where there is nothing
        return np.zeros(shape, dtype)
    if name == "pixel_position_ids":
        rows = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(16, 2)
        return np.broadcast_to(rows, shape).astype(dtype)
    if "indices" in name or name == "position_ids":
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
    if "segment" in name:
        return rng.integers(0, 2, shape).astype(dtype)
    if name in ("points", "boxes", "image_ids", "text_ids", "timesteps"):
        return rng.uniform(0, 1, shape).astype(dtype)
    if not dtype.startswith("float"):
        return np.ones(shape, dtype)
    return rng.standard_normal(shape).astype(dtype)
