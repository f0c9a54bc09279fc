"""The law of a base initializer: distribution family and standard deviation."""

import dataclasses
import math
from collections.abc import Sequence

import keras

from keras_varinit.arguments import Arguments, did_you_mean
from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import (
    ContextualInitializer,
    Family,
    neutral_fans,
    registered_names,
)
from keras_varinit.initializers.streams import TRUNCATED_STDDEV
from keras_varinit.seeds import random_kept
from keras_varinit.typing import Config, Layer

_VARIANCE_SCALING_FAMILIES: dict[str, Family] = {
    "uniform": "uniform",
    "untruncated_normal": "normal",
}


@dataclasses.dataclass(frozen=True)
class Law:
    """Family and standard deviation of an entry.

    `correction` is the factor from the scale that Keras draws with to `stddev`.
    """

    family: Family
    stddev: float | None
    correction: float = 1.0


def resolve_base(
    owner: str, initializer: str | Config | keras.initializers.Initializer, seed: int | None
) -> keras.initializers.Initializer:
    """Turns a name, config or object into a base initializer, seeded with `seed` unless None.

    Raises:
        TypeError, ValueError: not an initializer, not zero-mean, or not seedable.
    """
    try:
        base = keras.initializers.get(initializer)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{owner}: `initializer` must name a Keras or keras_varinit initializer. "
            f"Received: initializer={initializer!r}."
            f"{did_you_mean(initializer, initializer_names())}"
        ) from error
    if not isinstance(base, keras.initializers.Initializer):
        raise TypeError(
            f"{owner}: `initializer` must be an initializer, its name or its config. "
            f"Received: initializer={initializer!r}."
        )
    _check_zero_mean(owner, base)
    reason = base.refused_as_base if isinstance(base, ContextualInitializer) else None
    if reason is not None:
        raise ValueError(
            f"{owner}: `initializer` must be an initializer whose draws can be scaled. Received: "
            f"initializer={base!r}: {reason}."
        )
    if "seed" not in base.get_config():
        raise ValueError(
            f"{owner}: `initializer` must draw random values from a `seed` in its config, so that "
            f"each kernel gets its own stream. Received: initializer={base!r}."
        )
    return base if seed is None else reseeded(base, seed)


def initializer_names() -> set[str]:
    """The names that `keras.initializers.get` knows, of Keras and of this library."""
    of_keras = (n for n in dir(keras.initializers) if not n.startswith("_"))
    of_ours = (n for n in registered_names if ">" not in n)
    return {*of_keras, *of_ours} - {"deserialize", "get", "serialize"}


def seed_of(owner: str, base: keras.initializers.Initializer) -> int | None:
    """The integer seed that a base was constructed with, or None."""
    seed = base.get_config()["seed"]
    try:
        return Arguments(owner).seed(seed)
    except TypeError:
        raise ValueError(
            f"{owner}: the seed of `initializer` must be an integer or None, since calls are pure. "
            f"Received: seed={getattr(base, 'seed', seed)!r}."
        ) from None


def reseeded(
    base: keras.initializers.Initializer, seed: int | None
) -> keras.initializers.Initializer:
    """A copy of a base that draws from `seed`."""
    config = {**base.get_config(), "seed": seed}
    if seed is None:
        return type(base).from_config(config)
    with random_kept(seed):  # an initializer inside the base may have no seed
        return type(base).from_config(config)


def for_kernel(
    base: keras.initializers.Initializer, context: LayerContext, seed: int
) -> keras.initializers.Initializer:
    """One of Keras's initializers for one kernel, with its own seed and the scale of the true fans.

    Where Keras miscounts the fans, the result has an explicit standard deviation instead.
    """
    if "seed" not in base.get_config():
        return base
    law = describe(base, context.kernel_shape, context)
    if law.stddev is None or math.isclose(law.correction, 1, rel_tol=1e-9):
        return reseeded(base, seed)
    return with_stddev(law.family, law.stddev, seed)


def with_stddev(family: Family, stddev: float, seed: int | None) -> keras.initializers.Initializer:
    """Keras's initializer with a family and a standard deviation, independent of fans.

    Families that Keras has no such initializer for become normal.
    """
    if stddev == 0:
        return keras.initializers.Zeros()
    if family == "uniform":
        bound = math.sqrt(3) * stddev
        return keras.initializers.RandomUniform(-bound, bound, seed=seed)
    if family == "truncated_normal":
        return keras.initializers.TruncatedNormal(stddev=stddev / TRUNCATED_STDDEV, seed=seed)
    return keras.initializers.RandomNormal(stddev=stddev, seed=seed)


def describe(
    base: keras.initializers.Initializer, shape: Sequence[int], context: LayerContext | None
) -> Law:
    """The law of a base for one kernel; with a context, variance scaling uses the true fans.

    Standard deviations:

    * `VarianceScaling`: √(scale/fan) for every distribution (Keras corrects for truncation);
    * `RandomNormal`: stddev; `TruncatedNormal`: 0.8796·stddev, reduced by the truncation;
      `RandomUniform(-a, a)`: a/√3;
    * `Orthogonal`: gain/√max(rows, columns), rows = the product of all axes but the last;
    * initializers of this library: their own `stddev`.
    """
    if isinstance(base, ContextualInitializer):
        return Law(base.family, base.with_context(context).stddev(shape))
    if isinstance(base, keras.initializers.VarianceScaling):
        return _variance_scaling_law(base, shape, context)
    if isinstance(base, keras.initializers.TruncatedNormal):
        return Law("truncated_normal", float(base.stddev) * TRUNCATED_STDDEV)
    if isinstance(base, keras.initializers.RandomNormal):
        return Law("normal", float(base.stddev))
    if isinstance(base, keras.initializers.RandomUniform):
        return Law("uniform", (float(base.maxval) - float(base.minval)) / math.sqrt(12))
    if isinstance(base, keras.initializers.Orthogonal) and len(shape) >= 2:
        return Law(
            "orthogonal", float(base.gain) / math.sqrt(max(math.prod(shape[:-1]), shape[-1]))
        )
    return Law("other", None)


def as_drawn(
    layer: Layer, initializer: keras.initializers.Initializer
) -> keras.initializers.Initializer:
    """The initializer that a layer draws its kernel with, including how Keras counts its fans.

    In versions where variance scaling takes a kernel's input and output axes, `EinsumDense` draws
    with a copy that has them.
    """
    if not isinstance(layer, keras.layers.EinsumDense):
        return initializer
    if not isinstance(initializer, keras.initializers.VarianceScaling):
        return initializer
    config = initializer.get_config()
    if config.get("input_axes", ()) is not None and config.get("output_axes", ()) is not None:
        return initializer
    operands, output = layer.equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    axes: dict[bool, list[int]] = {True: [], False: []}
    for axis, letter in enumerate(kernel):
        axes[letter in output].append(axis)
    config |= {"input_axes": axes[False], "output_axes": axes[True], "seed": initializer.seed}
    return type(initializer).from_config(config)


def _variance_scaling_law(
    base: keras.initializers.VarianceScaling, shape: Sequence[int], context: LayerContext | None
) -> Law:
    counted = _fan(base.mode, *_fans_as_keras_counts(base, shape))
    fan = counted if context is None else _fan(base.mode, context.fan_in, context.fan_out)
    family: Family = _VARIANCE_SCALING_FAMILIES.get(str(base.distribution), "truncated_normal")
    return Law(family, stddev=math.sqrt(base.scale / fan), correction=math.sqrt(counted / fan))


def _fans_as_keras_counts(
    base: keras.initializers.VarianceScaling, shape: Sequence[int]
) -> tuple[float, float]:
    """The fans that Keras's own draw uses; newer versions may set the axes explicitly."""
    inputs, outputs = getattr(base, "input_axes", None), getattr(base, "output_axes", None)
    if inputs is None or outputs is None:
        return neutral_fans(shape)
    return math.prod(shape[i] for i in inputs), math.prod(shape[i] for i in outputs)


def _fan(mode: str, fan_in: float, fan_out: float) -> float:
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    return max(1.0, fans[mode])


def mean_of(initializer: keras.initializers.Initializer, shape: Sequence[int]) -> float:
    """The mean of an entry of a kernel of that shape; 0 for classes without such a parameter."""
    if isinstance(initializer, ContextualInitializer):
        return initializer.mean(shape)
    if isinstance(initializer, keras.initializers.RandomUniform):
        return (float(initializer.minval) + float(initializer.maxval)) / 2
    return float(getattr(initializer, "mean", 0.0))


def _check_zero_mean(owner: str, base: keras.initializers.Initializer) -> None:
    mean, expected = None, "have mean 0"
    if isinstance(base, keras.initializers.RandomNormal | keras.initializers.TruncatedNormal):
        mean = float(base.mean)
    elif isinstance(base, keras.initializers.RandomUniform):
        mean, expected = (float(base.minval) + float(base.maxval)) / 2, "satisfy minval = -maxval"
    elif isinstance(base, keras.initializers.Constant | keras.initializers.Ones):
        mean = float(getattr(base, "value", 1.0)) if not _is_array(base) else 1.0
    if mean is not None and mean != 0.0:
        raise ValueError(
            f"{owner}: `initializer` must be zero-mean ({expected}). Received: "
            f"{type(base).__name__} with mean {mean:g}."
        )


def _is_array(base: keras.initializers.Initializer) -> bool:
    return bool(getattr(getattr(base, "value", None), "shape", ()))
