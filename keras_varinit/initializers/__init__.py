"""The initializers: one file per paper over one shared base."""

from keras_varinit.initializers.asv import ASVBackward, ASVForward
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.branch_end_zeros import BranchEndZeros
from keras_varinit.initializers.chrono import ChronoBias
from keras_varinit.initializers.depth import DepthScaled
from keras_varinit.initializers.enhanced import Enhanced
from keras_varinit.initializers.enhanced_presets import (
    EnhancedGlorotNormal,
    EnhancedGlorotUniform,
    EnhancedHeNormal,
    EnhancedHeUniform,
    EnhancedLecunNormal,
    EnhancedLecunUniform,
)
from keras_varinit.initializers.fan_in_bias import FanInBias
from keras_varinit.initializers.isometric import Isometric
from keras_varinit.initializers.mimetic import Mimetic
from keras_varinit.initializers.partial_identity import PartialIdentity
from keras_varinit.initializers.recommended import Recommended
from keras_varinit.initializers.residual import ResidualScaled
from keras_varinit.initializers.signal import SignalPreserving

__all__ = [
    "ASVBackward",
    "ASVForward",
    "BranchEndZeros",
    "ChronoBias",
    "ContextualInitializer",
    "DepthScaled",
    "Enhanced",
    "EnhancedGlorotNormal",
    "EnhancedGlorotUniform",
    "EnhancedHeNormal",
    "EnhancedHeUniform",
    "EnhancedLecunNormal",
    "EnhancedLecunUniform",
    "FanInBias",
    "Isometric",
    "Mimetic",
    "PartialIdentity",
    "Recommended",
    "ResidualScaled",
    "SignalPreserving",
]
