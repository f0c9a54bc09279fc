"""Depth-scaled initialization (Pandey, arXiv 2509.05018).

Layer l of L (1 is nearest the input) multiplies the base initializer's variance by

    k_l = log_base(l + offset),

which is below one for l + offset < base and above one otherwise. The network's variance is
V = ∏ k_l, and k_l = ln(l + offset)/ln(base) gives ln V = Σ ln ln(l + offset) - L·ln ln(base), so
the base for a target V is exp(exp((Σ ln ln(l + offset) - ln V)/L)). The paper's rule of thumb, a
third of the layers below one, is base = L/3 + offset.
"""

import functools
import math
from collections.abc import Mapping
from typing import Literal

import keras

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import register
from keras_varinit.initializers.wrapping import ScaledWrapper
from keras_varinit.typing import Config

Schedule = Literal["increasing", "decreasing", "constant"]

_SCHEDULES = ("increasing", "decreasing", "constant")


@register("depth_scaled")
class DepthScaled(ScaledWrapper):
    """Multiplies a base initializer's variance by log_base(depth + offset).

    Variance grows from the first weight layer to the last: k_l = log_base(l + offset), where l is
    the layer's depth. `schedule="decreasing"` mirrors it (l becomes L+1-l); `"constant"` gives
    every layer the geometric mean k = V^{1/L}, V = ∏ k_l.

    Args:
        initializer: The base: a string id, config or initializer object, of Keras or of this
            library, that is zero-mean and takes a `seed`. Defaults to `"he_normal"`.
        base: Base of the logarithm, greater than 1; the larger, the smaller the weights. None
            means L/3 + offset, or the base that gives `network_variance`.
        offset: Non-negative; keeps the first layers from getting almost no variance.
        schedule: `"increasing"`, `"decreasing"` or `"constant"`.
        network_variance: Target V = ∏ k_l over l = 1…L. It determines `base`, so pass only one of
            the two. In a network with branches, l runs over the depths, not over the layers.
        seed: Integer or None. None takes the base initializer's own seed if it has one.
        context: Set by `inject`. Without it k = 1: the base initializer, bit for bit.

    Shape: any that the base initializer takes.

    Units: k scales the *variance*; the standard deviation is multiplied by √k.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, both `base` and
            `network_variance` are passed, or (with a context) depth + offset <= 1 or L/3 + offset
            <= 1, so that the logarithm is not positive.

    Example:
        >>> import keras_varinit as kv
        >>> round(kv.DepthScaled(base=20.0).scale(depth=19, total_depth=54), 6)
        1.0

    Reference: V. Pandey (2025), arXiv 2509.05018, sections 4.1.2, 6 to 8.
    """

    def __init__(
        self,
        initializer: str | Config | keras.initializers.Initializer = "he_normal",
        base: float | None = None,
        offset: float = 1.0,
        schedule: Schedule = "increasing",
        network_variance: float | None = None,
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(initializer, seed, context)
        self.base = None if base is None else self._arguments.number("base", base, above=1)
        self.offset = self._arguments.number("offset", offset, at_least=0)
        self.schedule = self._arguments.choice("schedule", schedule, _SCHEDULES)
        self.network_variance = (
            None
            if network_variance is None
            else self._arguments.number("network_variance", network_variance, above=0)
        )
        if self.base is not None and self.network_variance is not None:
            raise ValueError(
                f"{self._name}: `network_variance` determines the base, so give only one of the "
                f"two. Received: base={base!r}, network_variance={network_variance!r}."
            )
        if self._context is not None:
            self.scale(self._context.depth, self._context.total_depth)

    def scale(self, depth: int, total_depth: int) -> float:
        """Returns k, the factor on the base initializer's variance, at one depth of a network."""
        if self.schedule == "constant":
            return math.exp(self._mean_log_scale(total_depth))
        if self.schedule == "decreasing":
            depth = total_depth + 1 - depth
        return math.exp(self._log_scale(depth, total_depth))

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {
            "initializer": self._base_config(),
            "base": self.base,
            "offset": self.offset,
            "schedule": self.schedule,
            "network_variance": self.network_variance,
            **super().get_config(),
        }

    def _log_scale(self, depth: int, total_depth: int) -> float:
        """Ln k_depth of the increasing schedule."""
        return self._log_log(depth) - self._log_log_base(total_depth)

    def _mean_log_scale(self, total_depth: int) -> float:
        """(ln V)/L, which is the same for every schedule."""
        if self.network_variance is not None:
            return math.log(self.network_variance) / total_depth
        return self._mean_log_log(total_depth) - self._log_log_base(total_depth)

    def _mean_log_log(self, total_depth: int) -> float:
        """(Σ ln ln(l + offset))/L."""
        self._log_log(1)  # raises if undefined; the others are larger
        return _sum_log_log(total_depth, self.offset) / total_depth

    def _log_log(self, depth: int) -> float:
        """Ln ln(depth + offset)."""
        argument = depth + self.offset
        if argument <= 1:
            raise ValueError(
                f"{self._name}: depth + offset must be greater than 1, or log(depth + offset) "
                f"leaves no variance{self._place()}. Received: depth={depth}, "
                f"offset={self.offset:g}. Use an offset greater than 0."
            )
        return math.log(math.log(argument))

    def _log_log_base(self, total_depth: int) -> float:
        """Ln ln(base), for the base used in a network of that depth."""
        if self.network_variance is not None:
            return self._mean_log_log(total_depth) - math.log(self.network_variance) / total_depth
        base = total_depth / 3 + self.offset if self.base is None else self.base
        if base <= 1:
            raise ValueError(
                f"{self._name}: base = L/3 + offset must be greater than 1{self._place()}. "
                f"Received: L={total_depth}, offset={self.offset:g}, so base={base:g}. "
                "Give `base` or a larger `offset`."
            )
        return math.log(math.log(base))

    def _place(self) -> str:
        return "" if self._context is None else f" for {self._context.path!r}"

    def _factor(self, context: LayerContext) -> float:
        return math.sqrt(self.scale(context.depth, context.total_depth))


@functools.lru_cache(maxsize=64)
def _sum_log_log(total_depth: int, offset: float) -> float:
    """Σ ln ln(l + offset) over l = 1…L; cached, since every layer of a network needs it."""
    depths = range(1, total_depth + 1)
    return math.fsum(math.log(math.log(depth + offset)) for depth in depths)
