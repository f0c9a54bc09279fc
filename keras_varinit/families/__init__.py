"""One file per family of layers: fans of the kernels, role in a stage, signal and gradient rules.

Importing the package registers all rules. The docstring of each file lists its layers and
operations.
"""

from keras_varinit.families import (
    activations,
    catalogue,
    concatenation,
    convolution,
    embedding,
    entrywise,
    identity,
    kernels,
    linear,
    merging,
    noise,
    normalization,
    padding,
    patches,
    pooling,
    reduction,
    resampling,
    reshaping,
    scaling,
    selection,
)
from keras_varinit.families.attention import fused, multi_head, products, single_head, softmax
from keras_varinit.families.recurrent import cells, layers

__all__ = [
    "activations",
    "catalogue",
    "cells",
    "concatenation",
    "convolution",
    "embedding",
    "entrywise",
    "fused",
    "identity",
    "kernels",
    "layers",
    "linear",
    "merging",
    "multi_head",
    "noise",
    "normalization",
    "padding",
    "patches",
    "pooling",
    "products",
    "reduction",
    "resampling",
    "reshaping",
    "scaling",
    "selection",
    "single_head",
    "softmax",
]
