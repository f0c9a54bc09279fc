"""γ = 0 where a normalization ends a residual branch (Goyal et al. 2017, arXiv 1706.02677).

Every block then starts as the identity, so that the signal and its gradient pass a deep network
unchanged.
"""

from collections.abc import Mapping, Sequence

import keras

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import ContextualInitializer, register
from keras_varinit.initializers.draws import Draw, constant
from keras_varinit.typing import Config


@register("branch_end_zeros")
class BranchEndZeros(ContextualInitializer):
    """γ of a normalization: 0 where it ends a residual branch, else 1.

    A normalization ends a branch if its output reaches the addition through no further kernel.
    Whether zeros help depends on the optimizer: Adam moves a γ by about its learning rate per step,
    which is slow from 0.

    Args:
        context: Set by `inject`. Without it γ is 1, Keras's default.

    Shape: any.

    Units: γ is a factor on the normalized signal. `stddev` is 0, as nothing is random.

    Raises:
        TypeError: `context` is neither a `LayerContext` nor its dictionary.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layer = keras.layers.BatchNormalization(gamma_initializer="branch_end_zeros")
        >>> layer.build((None, 4))
        >>> float(keras.ops.convert_to_numpy(layer.gamma)[0])
        1.0

    Measured here (examples/RESULTS.md, the panel): ResNets with batch normalization reach the same
    accuracy as with ones, and start more slowly where the learning rate is small, with SGD as with
    Adam.

    Reference: Goyal et al. (2017), arXiv 1706.02677, section 5.1. There: ResNet-50 with batch
    normalization, SGD with momentum 0.9 and weight decay, ImageNet.
    """

    kinds = ("scale",)

    def __init__(self, context: LayerContext | Mapping[str, object] | None = None) -> None:
        super().__init__(seed=0, context=context)

    @property
    def refused_as_base(self) -> str:
        """Why no wrapper may scale the draws of this initializer."""
        return "it draws nothing at random"

    def stddev(self, shape: Sequence[int]) -> float:
        """Returns 0."""
        return 0.0

    def neutral(self) -> keras.initializers.Initializer:
        """Returns ones."""
        return keras.initializers.Ones()

    def in_keras(self) -> keras.initializers.Initializer:
        """Returns zeros or ones."""
        ends = self._context is not None and self._context.branch_end
        return keras.initializers.Zeros() if ends else self.neutral()

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {"context": super().get_config()["context"]}

    def _sample(self, shape: tuple[int, ...]) -> Draw:
        context = self._context_for(shape)
        ends = context is not None and context.branch_end
        return constant(shape, 0.0 if ends else 1.0)
