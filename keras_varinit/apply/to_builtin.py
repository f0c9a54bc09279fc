"""`to_builtin`: copies of models whose configuration only needs Keras."""

import math
from typing import Any

import keras

from keras_varinit import keras_private
from keras_varinit.initializers.base import ContextualInitializer, registered_names
from keras_varinit.initializers.laws import describe, with_stddev
from keras_varinit.initializers.partial_identity import PartialIdentity
from keras_varinit.initializers.streams import PACKAGE
from keras_varinit.seeds import random_kept
from keras_varinit.typing import Model, Variable


def to_builtin(model: keras.Model) -> keras.Model:
    """Returns a copy of a model, with the same weights, whose configuration only needs Keras.

    Every initializer of this library is replaced by Keras's with the same distribution family and
    standard deviation, so a saved copy loads where this library is not installed. What Keras has no
    initializer for is lost: the per-filter variances of `Enhanced` become the layer's mean
    variance, identity filters the base's draws, and orthogonal kernels normal ones, save for
    matrices. An initializer without a context becomes its neutral case.

    Args:
        model: A built `keras.Model` that Keras can serialize.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not built, or its own `get_config` still names this library.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layers = [keras.Input((8,)), keras.layers.Dense(4, kernel_initializer="asv_forward")]
        >>> copy = kv.to_builtin(keras.Sequential(layers))
        >>> type(copy.layers[0].kernel_initializer).__name__
        'VarianceScaling'
    """
    keras_private.check_built(model)
    with random_kept():
        return _copied(model)


def _copied(model: Model) -> Model:
    config = _translated(keras.saving.serialize_keras_object(model))
    copy: Model = keras.saving.deserialize_keras_object(config)
    for layer in [copy, *keras_private.layers_of(copy)]:
        attributes = list(keras_private.initializer_attributes(layer, ContextualInitializer))
        for attribute, initializer in attributes:
            keras_private.replace_attribute(layer, attribute, _builtin(initializer))
    _take_weights(copy, model)
    if _names_ours(keras.saving.serialize_keras_object(copy)):
        raise ValueError(
            f"to_builtin: the configuration of model {model.name!r} still names an initializer of "
            f"this library, because {type(model).__name__}.get_config writes it. Let get_config "
            "serialize the layers' present initializers."
        )
    return copy


def _take_weights(copy: Model, model: Model) -> None:
    """Copies weights by name where names are unique: quantizing a layer reorders its variables."""
    sources, targets = _by_name(model), _by_name(copy)
    names = [[name for name, _ in variables] for variables in sources]
    unique = all(len(set(each)) == len(each) for each in names)
    if unique and names == [[name for name, _ in variables] for variables in targets]:
        for layer, twin in zip(sources, targets, strict=True):
            for (_, source), (_, target) in zip(layer, twin, strict=True):
                target.assign(source)
    else:
        copy.set_weights(model.get_weights())


def _by_name(model: Model) -> list[list[tuple[str, Variable]]]:
    """Name and variable of each layer's own variables, sorted by name."""
    return [
        sorted(((v.name, v) for v in keras_private.own_variables(layer)), key=lambda pair: pair[0])
        for layer in [model, *keras_private.layers_of(model)]
    ]


def _translated(config: Any, key: str = "") -> Any:
    """Replaces every initializer of this library in a configuration."""
    if isinstance(config, dict):
        if str(config.get("registered_name", "")).startswith(f"{PACKAGE}>"):
            initializer = keras.saving.deserialize_keras_object(config)
            if isinstance(initializer, ContextualInitializer):
                return keras.saving.serialize_keras_object(_builtin(initializer))
        return {name: _translated(value, str(name)) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_translated(value, key) for value in config)
    if _is_our_id(config, key):
        return keras.saving.serialize_keras_object(_builtin(keras.initializers.get(config)))
    return config


def _names_ours(config: object, key: str = "") -> bool:
    """Whether a configuration names an initializer of this library."""
    if isinstance(config, dict):
        return any(_names_ours(value, str(name)) for name, value in config.items())
    if isinstance(config, list | tuple):
        return any(_names_ours(value, key) for value in config)
    return _is_our_id(config, key) or str(config).startswith(f"{PACKAGE}>")


def _is_our_id(value: object, key: str) -> bool:
    """Whether a value is one of our string ids, and not a layer of the same name."""
    return key.endswith("initializer") and isinstance(value, str) and value in registered_names


def _builtin(initializer: ContextualInitializer) -> keras.initializers.Initializer:
    """Keras's initializer with the same family and standard deviation."""
    context, seed = initializer.context, initializer.seed
    exact = initializer.in_keras()
    if exact is not None:
        return exact
    if context is None:
        return initializer.neutral()
    shape = context.kernel_shape
    if isinstance(initializer, PartialIdentity):
        stddev = describe(initializer.initializer, shape, context).stddev
    else:
        stddev = initializer.stddev(shape)
    if stddev is None:
        return initializer.neutral()
    family = initializer.family
    if family == "orthogonal" and len(shape) == 2 and context.filter_axes == (1,):
        return keras.initializers.Orthogonal(gain=stddev * math.sqrt(max(shape)), seed=seed)
    if family in ("orthogonal", "other"):
        family = describe(initializer.neutral(), shape, None).family
    return with_stddev(family, stddev, seed)
