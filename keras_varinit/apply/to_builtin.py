"""Copies of models whose configuration needs Keras alone."""

from typing import Any

import keras

from keras_varinit import keras_private
from keras_varinit.initializers.base import PACKAGE, ContextualInitializer, registered_names
from keras_varinit.initializers.laws import describe, with_stddev
from keras_varinit.seeds import random_kept


def to_builtin(model: Any) -> Any:
    """Returns a copy of a model whose configuration needs Keras alone; weights are unchanged.

    Every initializer of this library is replaced by one of Keras's with the same distribution
    family and standard deviation, so a file of the copy loads where this library is not installed.
    What Keras has no initializer for is lost: the variance of each filter of its own (`Enhanced`)
    becomes the layer's mean variance. An initializer that was never injected becomes its neutral
    case.

    Args:
        model: A built `keras.Model` that Keras can serialize.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: it is not built, or its own `get_config` still asks for this library.

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


def _copied(model: Any) -> Any:
    config = _translated(keras.saving.serialize_keras_object(model))
    copy = keras.saving.deserialize_keras_object(config)
    for layer in [copy, *keras_private.layers_of(copy)]:
        found = list(keras_private.initializer_attributes(layer, ContextualInitializer))
        for attribute, initializer in found:
            keras_private.replace_initializer(layer, attribute, _builtin(initializer))
    _take_weights(copy, model)
    if _names_ours(keras.saving.serialize_keras_object(copy)):
        raise ValueError(
            f"to_builtin: the configuration of model {model.name!r} still names an initializer of "
            f"this library, since {type(model).__name__}.get_config writes it. Let get_config "
            "serialize what the layers hold."
        )
    return copy


def _take_weights(copy: Any, model: Any) -> None:
    """By name in each layer where names tell: quantizing a layer orders its variables anew."""
    sources, targets = _by_name(model), _by_name(copy)
    names = [[name for name, _ in variables] for variables in sources]
    unique = all(len(set(each)) == len(each) for each in names)
    if unique and names == [[name for name, _ in variables] for variables in targets]:
        for layer, twin in zip(sources, targets, strict=True):
            for (_, source), (_, target) in zip(layer, twin, strict=True):
                target.assign(source)
    else:
        copy.set_weights(model.get_weights())


def _by_name(model: Any) -> list[list[tuple[str, Any]]]:
    """Name and variable of each layer's own variables, sorted."""
    return [
        sorted(((v.name, v) for v in keras_private.own_variables(layer)), key=lambda pair: pair[0])
        for layer in [model, *keras_private.layers_of(model)]
    ]


def _translated(config: Any, key: str = "") -> Any:
    """A configuration with every initializer of this library replaced."""
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


def _names_ours(config: Any, key: str = "") -> bool:
    """Whether a configuration names an initializer of this library anywhere."""
    if isinstance(config, dict):
        return any(_names_ours(value, str(name)) for name, value in config.items())
    if isinstance(config, list | tuple):
        return any(_names_ours(value, key) for value in config)
    return _is_our_id(config, key) or str(config).startswith(f"{PACKAGE}>")


def _is_our_id(value: Any, key: str) -> bool:
    """Whether a value is one of our ids; a layer may bear such a name, an initializer has one."""
    return key.endswith("initializer") and isinstance(value, str) and value in registered_names


def _builtin(initializer: ContextualInitializer) -> Any:
    """Keras's initializer of the same family and standard deviation."""
    context, seed = initializer.context, initializer.seed
    if context is None:
        return initializer.neutral()
    stddev = initializer.stddev(context.kernel_shape)
    if stddev is None:
        return initializer.neutral()
    family = describe(initializer.neutral(), context.kernel_shape, None).family
    return with_stddev(family, stddev, seed)
