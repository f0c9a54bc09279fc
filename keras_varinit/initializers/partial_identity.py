"""Partial identity: convolutions that start by passing on what they read (Jordan 2024)."""

import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import register
from keras_varinit.initializers.draws import Draw
from keras_varinit.initializers.streams import Float32Array
from keras_varinit.initializers.wrapping import Wrapper
from keras_varinit.typing import Config


@register("partial_identity")
class PartialIdentity(Wrapper):
    """Makes the first filters of a convolution the identity, and draws the others from a base.

    Of a kernel with c_in input channels and c_out >= c_in filters, filter i < c_in copies channel
    i: its central tap is 1 at channel i, all else 0. The other c_out - c_in filters are the base's.

    These kernels get no identity filters and come entirely from the base: those of layers other
    than convolutions (Dense, attention, recurrent), depthwise, grouped and transposed convolutions;
    windows of an even size, which have no centre; fewer filters than channels; the first layer
    (depth 1), whose channels are not features; the end of a residual branch, where a copy would
    double the stream; the model's output and all kernels of another role than `"kernel"`.

    The signal engine assumes independent, zero-mean entries, so `analyze` predicts nothing for
    kernels with identity filters, nor for what follows them: None, with a note. Wrappers such as
    `Enhanced`, `DepthScaled` and `ResidualScaled` refuse this initializer as a base, as a factor
    would turn the identity into a gain. It takes them as its own base.

    Args:
        initializer: The base: a string id, config or initializer object, of Keras or of this
            library, that is zero-mean and takes a `seed`. Defaults to `"he_normal"`. The source
            uses PyTorch's default, U(±1/√fan_in).
        seed: Integer or None. None takes the base initializer's own seed if it has one.
        context: Set by `inject`. Without it the base initializer, bit for bit: a shape alone does
            not tell a convolution from other layers, nor the first layer from the others.

    Shape: any that the base initializer takes; kernels (*window, c_in, c_out) get identity filters.

    Units: `stddev` is √E[var] over all entries, those of the identity counting as constants of
    variance 0: the base's times √(1 - c_in/c_out). It is 0 for c_in = c_out, where nothing is
    random and layers of equal shape get equal kernels.

    Raises:
        TypeError, ValueError: an argument has the wrong type; the base is not zero-mean, takes no
            seed, or is a `PartialIdentity`.

    Example:
        >>> import keras, keras_varinit as kv, numpy as np
        >>> layers = [keras.layers.Conv2D(8, 3) for _ in range(3)]
        >>> model = keras.Sequential([keras.Input((16, 16, 3)), *layers])
        >>> report = kv.initialize(model, kv.PartialIdentity(), seed=0)
        >>> kernel = keras.ops.convert_to_numpy(model.layers[1].kernel)
        >>> bool((kernel[1, 1] == np.eye(8)).all()), int(kernel.sum())
        (True, 8)

    Measured here (examples/RESULTS.md, the panel): no difference from Keras's default, in six
    convolutions without normalization and in a ResNet-14 with it.

    Reference: K. Jordan (2024), "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv
    2404.00498. There: all convolutions after the first of a small network with batch normalization;
    18 instead of 21 epochs to 94 %. Ends of residual branches are untested.
    """

    def __init__(
        self,
        initializer: str | Config | keras.initializers.Initializer = "he_normal",
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(initializer, seed, context)

    @property
    def refused_as_base(self) -> str:
        """Why no wrapper may scale the draws of this initializer."""
        return "a factor would turn its identity filters into a gain"

    def copied_channels(self, shape: Sequence[int]) -> int:
        """Returns the number of identity filters of a kernel of that shape: c_in, or 0."""
        context = self._context_for(shape)
        return 0 if context is None else _copied_channels(context)

    def stddev(self, shape: Sequence[int]) -> float | None:
        """Returns √E[var] of an entry: the base's, reduced by the share of identity filters."""
        copied, stddev = self.copied_channels(shape), self._law(shape).stddev
        if copied == shape[-1]:
            return 0.0
        return None if stddev is None else stddev * math.sqrt(1 - copied / shape[-1])

    def mean(self, shape: Sequence[int]) -> float:
        """Returns the mean of an entry: one of c_out·window in each identity filter's is 1."""
        return self.copied_channels(shape) / math.prod(shape)

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {"initializer": self._base_config(), **super().get_config()}

    def _sample(self, shape: tuple[int, ...]) -> Draw:
        copied, drawn = self.copied_channels(shape), self._base_draw(shape)
        if not copied:
            return drawn
        centre = tuple(n // 2 for n in shape[:-2])

        def identity(starts: tuple[int, ...], box: Float32Array) -> None:
            *corner, channel, filter_ = starts
            box[..., : max(copied - filter_, 0)] = 0
            middle = [n - start for n, start in zip(centre, corner, strict=True)]
            if all(0 <= n < size for n, size in zip(middle, box.shape, strict=False)):
                matrix = box[tuple(middle)]
                first = max(channel, filter_)
                last = min(channel + matrix.shape[0], filter_ + matrix.shape[1], copied)
                diagonal = np.arange(first, last)
                matrix[diagonal - channel, diagonal - filter_] = 1

        return drawn.edited(identity)


def _copied_channels(context: LayerContext) -> int:
    """c_in if a kernel is a plain convolution's that can be the identity, else 0."""
    shape, rank = context.kernel_shape, len(context.spatial_axes)
    if not rank or context.spatial_axes != tuple(range(rank)) or len(shape) != rank + 2:
        return 0
    *window, channels, filters = shape
    taps = math.prod(window)
    plain = context.filter_axes == (rank + 1,) and math.isclose(context.fan_in, taps * channels)
    grouped = not math.isclose(context.fan_out, taps * filters)
    placed = context.depth > 1 and context.role == "kernel" and not context.branch_end
    if not plain or grouped or not placed or any(n % 2 == 0 for n in window):
        return 0
    return channels if channels <= filters else 0
