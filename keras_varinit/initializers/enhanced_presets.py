"""The six presets of `Enhanced`, one for each of Keras's variance-scaling initializers."""

from collections.abc import Mapping

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import register
from keras_varinit.initializers.enhanced import EnhancedBase, Granularity
from keras_varinit.typing import Config


class _Preset(EnhancedBase):
    """An `Enhanced` whose base is fixed by the class."""

    base_name: str

    def __init__(
        self,
        granularity: Granularity = "filter",
        concentration: float = 0.5,
        delta: float | None = None,
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(self.base_name, granularity, concentration, delta, seed, context)

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {
            "granularity": self.granularity,
            "concentration": self.concentration,
            "delta": self.delta,
            **super().get_config(),
        }


@register("enhanced_he_normal")
class EnhancedHeNormal(_Preset):
    """Gives every filter its own variance around He's variance 2/fan_in.

    `Enhanced("he_normal")`: a filter is normal with variance σ²·g, where σ² = 2/fan_in and g ~
    Gamma(k, 1/k), k = `concentration`. E g = 1, so the layer's mean variance is that of
    `he_normal`; for k = ½ the filter's variance is σ²·χ²(1). Its filters are
    not truncated.

    The choice for ReLU networks that would use `he_normal`.

    Args:
        granularity: `"filter"`: one g per filter. `"position"`: one per filter and position of the
            window.
        concentration: k > 0. The larger, the closer to `he_normal`. Defaults to 0.5, as in the
            reference.
        delta: 0 < δ <= 1 for the naive variant, g ~ U(1-δ, 1+δ); None for the law above.
        seed: Integer or None.
        context: Set by `inject`. Without it the last axis indexes filters, and fans are counted
            from the shape as Keras does.

    Shape: any; filters and positions come from the context's `filter_axes` and `spatial_axes`.

    Units: `stddev` is a standard deviation; `concentration` and `delta` concern the variance.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; `delta` is
            combined with `concentration`.

    Example:
        >>> import keras_varinit as kv
        >>> round(kv.EnhancedHeNormal().stddev((3, 3, 64, 128)), 5)  # √(2/576)
        0.05893

    Measured here (examples/RESULTS.md): with batch normalization slower than `he_normal` in the
    first epochs and equal at the end; without it, no difference beyond chance.

    Reference: M. Sharkansky, "Enhancing performance of deep convolutional neural networks
    initialization methods", eqs. 3.1.1, 3.1.5 and 3.1.6.
    """

    base_name = "he_normal"


@register("enhanced_he_uniform")
class EnhancedHeUniform(_Preset):
    """Gives every filter its own variance around He's variance 2/fan_in.

    `Enhanced("he_uniform")`: a filter is uniform with variance σ²·g, where σ² = 2/fan_in and g =
    (k+1)/k·v^{1/k}, v ~ U(0, 1), k = `concentration`. E g = 1, so the layer's mean variance is that
    of `he_uniform`; for k = ½ the filter is U(-√3|t|, √3|t|) with t drawn from `he_uniform`.

    The choice for ReLU networks that would use `he_uniform`.

    Args:
        granularity: `"filter"`: one g per filter. `"position"`: one per filter and position of the
            window.
        concentration: k > 0. The larger, the closer to `he_uniform`. Defaults to 0.5, as in the
            reference.
        delta: 0 < δ <= 1 for the naive variant, g ~ U(1-δ, 1+δ); None for the law above.
        seed: Integer or None.
        context: Set by `inject`. Without it the last axis indexes filters, and fans are counted
            from the shape as Keras does.

    Shape: any; filters and positions come from the context's `filter_axes` and `spatial_axes`.

    Units: `stddev` is a standard deviation; `concentration` and `delta` concern the variance.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; `delta` is
            combined with `concentration`.

    Example:
        >>> import keras_varinit as kv
        >>> round(kv.EnhancedHeUniform().stddev((3, 3, 64, 128)), 5)  # √(2/576)
        0.05893

    Measured here (examples/RESULTS.md): a small ResNet on 2,000 images of CIFAR-10 ends 0.02 lower
    in accuracy than with `he_uniform`.

    Reference: M. Sharkansky, "Enhancing performance of deep convolutional neural networks
    initialization methods", eqs. 3.1.1, 3.2.4 and 3.2.6.
    """

    base_name = "he_uniform"


@register("enhanced_glorot_normal")
class EnhancedGlorotNormal(_Preset):
    """Gives every filter its own variance around Glorot's variance 2/(fan_in + fan_out).

    `Enhanced("glorot_normal")`: a filter is normal with variance σ²·g, where σ² = 2/(fan_in +
    fan_out) and g ~ Gamma(k, 1/k), k = `concentration`. E g = 1, so the layer's mean variance is
    that of `glorot_normal`; for k = ½ the filter's variance is σ²·χ²(1). Filters are not truncated,
    as those of `glorot_normal` are.

    The choice for tanh, softsign and other symmetric activations.

    Args:
        granularity: `"filter"`: one g per filter. `"position"`: one per filter and position of the
            window.
        concentration: k > 0. The larger, the closer to `glorot_normal`. Defaults to 0.5, as in the
            reference.
        delta: 0 < δ <= 1 for the naive variant, g ~ U(1-δ, 1+δ); None for the law above.
        seed: Integer or None.
        context: Set by `inject`. Without it the last axis indexes filters, and fans are counted
            from the shape as Keras does.

    Shape: any; filters and positions come from the context's `filter_axes` and `spatial_axes`.

    Units: `stddev` is a standard deviation; `concentration` and `delta` concern the variance.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; `delta` is
            combined with `concentration`.

    Example:
        >>> import keras_varinit as kv
        >>> round(kv.EnhancedGlorotNormal().stddev((3, 3, 64, 128)), 5)  # √(2/1728)
        0.03402

    Reference: M. Sharkansky, "Enhancing performance of deep convolutional neural networks
    initialization methods", eqs. 3.1.1, 3.1.5 and 3.1.6.
    """

    base_name = "glorot_normal"


@register("enhanced_glorot_uniform")
class EnhancedGlorotUniform(_Preset):
    """Gives every filter its own variance around Glorot's variance 2/(fan_in + fan_out).

    `Enhanced("glorot_uniform")`: a filter is uniform with variance σ²·g, where σ² = 2/(fan_in +
    fan_out) and g = (k+1)/k·v^{1/k}, v ~ U(0, 1), k = `concentration`. E g = 1, so the layer's mean
    variance is that of `glorot_uniform`; for k = ½ the filter is U(-√3|t|, √3|t|) with t drawn from
    `glorot_uniform`.

    The choice for tanh, softsign and other symmetric activations.

    Args:
        granularity: `"filter"`: one g per filter. `"position"`: one per filter and position of the
            window.
        concentration: k > 0. The larger, the closer to `glorot_uniform`. Defaults to 0.5, as in the
            reference.
        delta: 0 < δ <= 1 for the naive variant, g ~ U(1-δ, 1+δ); None for the law above.
        seed: Integer or None.
        context: Set by `inject`. Without it the last axis indexes filters, and fans are counted
            from the shape as Keras does.

    Shape: any; filters and positions come from the context's `filter_axes` and `spatial_axes`.

    Units: `stddev` is a standard deviation; `concentration` and `delta` concern the variance.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; `delta` is
            combined with `concentration`.

    Example:
        >>> import keras_varinit as kv
        >>> round(kv.EnhancedGlorotUniform().stddev((3, 3, 64, 128)), 5)  # √(2/1728)
        0.03402

    Measured here (examples/RESULTS.md): in a small vision transformer worse than `glorot_uniform`,
    Keras's default.

    Reference: M. Sharkansky, "Enhancing performance of deep convolutional neural networks
    initialization methods", eqs. 3.1.1, 3.2.4 and 3.2.6.
    """

    base_name = "glorot_uniform"


@register("enhanced_lecun_normal")
class EnhancedLecunNormal(_Preset):
    """Gives every filter its own variance around LeCun's variance 1/fan_in.

    `Enhanced("lecun_normal")`: a filter is normal with variance σ²·g, where σ² = 1/fan_in and g ~
    Gamma(k, 1/k), k = `concentration`. E g = 1, so the layer's mean variance is that of
    `lecun_normal`; for k = ½ the filter's variance is σ²·χ²(1). Filters are not truncated, as those
    of `lecun_normal` are.

    The choice for SELU networks and linear layers.

    Args:
        granularity: `"filter"`: one g per filter. `"position"`: one per filter and position of the
            window.
        concentration: k > 0. The larger, the closer to `lecun_normal`. Defaults to 0.5, as in the
            reference.
        delta: 0 < δ <= 1 for the naive variant, g ~ U(1-δ, 1+δ); None for the law above.
        seed: Integer or None.
        context: Set by `inject`. Without it the last axis indexes filters, and fans are counted
            from the shape as Keras does.

    Shape: any; filters and positions come from the context's `filter_axes` and `spatial_axes`.

    Units: `stddev` is a standard deviation; `concentration` and `delta` concern the variance.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; `delta` is
            combined with `concentration`.

    Example:
        >>> import keras_varinit as kv
        >>> round(kv.EnhancedLecunNormal().stddev((3, 3, 64, 128)), 5)  # √(1/576)
        0.04167

    Reference: M. Sharkansky, "Enhancing performance of deep convolutional neural networks
    initialization methods", eqs. 3.1.1, 3.1.5 and 3.1.6.
    """

    base_name = "lecun_normal"


@register("enhanced_lecun_uniform")
class EnhancedLecunUniform(_Preset):
    """Gives every filter its own variance around LeCun's variance 1/fan_in.

    `Enhanced("lecun_uniform")`: a filter is uniform with variance σ²·g, where σ² = 1/fan_in and g =
    (k+1)/k·v^{1/k}, v ~ U(0, 1), k = `concentration`. E g = 1, so the layer's mean variance is that
    of `lecun_uniform`; for k = ½ the filter is U(-√3|t|, √3|t|) with t drawn from `lecun_uniform`.

    The choice for SELU networks and linear layers.

    Args:
        granularity: `"filter"`: one g per filter. `"position"`: one per filter and position of the
            window.
        concentration: k > 0. The larger, the closer to `lecun_uniform`. Defaults to 0.5, as in the
            reference.
        delta: 0 < δ <= 1 for the naive variant, g ~ U(1-δ, 1+δ); None for the law above.
        seed: Integer or None.
        context: Set by `inject`. Without it the last axis indexes filters, and fans are counted
            from the shape as Keras does.

    Shape: any; filters and positions come from the context's `filter_axes` and `spatial_axes`.

    Units: `stddev` is a standard deviation; `concentration` and `delta` concern the variance.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; `delta` is
            combined with `concentration`.

    Example:
        >>> import keras_varinit as kv
        >>> round(kv.EnhancedLecunUniform().stddev((3, 3, 64, 128)), 5)  # √(1/576)
        0.04167

    Reference: M. Sharkansky, "Enhancing performance of deep convolutional neural networks
    initialization methods", eqs. 3.1.1, 3.2.4 and 3.2.6.
    """

    base_name = "lecun_uniform"
