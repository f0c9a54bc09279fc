"""Warns of a training that starts with initializers that were never given a context.

Keras calls an initializer before there is a model around its layer, and nothing of this library
when training starts. So `keras.callbacks.CallbackList.on_train_begin`, which every `fit` calls, is
wrapped: the check follows it, for the callbacks may inject.
"""

import functools
import warnings
import weakref
from typing import Any

import keras

from keras_varinit import keras_private
from keras_varinit.apply.owners import Owner, owners
from keras_varinit.apply.transaction import holds_own_draw
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.memory import has_drawn, has_drawn_for_no_layer, remembered
from keras_varinit.tensors import training_steps
from keras_varinit.typing import Layer, Model

# Models that were injected, or warned of.
_settled: weakref.WeakSet[Model] = weakref.WeakSet()


def settle(model: Model) -> None:
    """Remembers that a model needs no warning (any more)."""
    _settled.add(model)


def watch_trainings() -> None:
    """Has `fit` check models that were not trained yet."""
    begin = keras.callbacks.CallbackList.on_train_begin
    if hasattr(begin, "checks_contexts"):
        return  # this library was imported twice

    @functools.wraps(begin)
    def on_train_begin(callbacks: Any, *args: Any, **options: Any) -> Any:
        result = begin(callbacks, *args, **options)
        model = getattr(callbacks, "model", None)  # a list may be without a model
        if isinstance(model, keras.Model) and model not in _settled:
            _check(model)
        return result

    on_train_begin.checks_contexts = True  # type: ignore[attr-defined]
    keras.callbacks.CallbackList.on_train_begin = on_train_begin


def _check(model: Model) -> None:
    """Checks a model; one that its first step builds is checked after that step."""
    if model.built:
        if has_drawn() and training_steps(model) == 0:
            _warn(model, [each for each in _neutral(model) if holds_own_draw(each[2], each[1])])
        return
    step = getattr(model, "train_function", None)
    if step is None:
        return  # a training loop of the user's own

    def first_step(*args: Any) -> Any:
        if model.train_function is first_step:
            model.train_function = step
        result = step(*args)
        _warn(model, _neutral(model) if has_drawn() else [])
        return result

    model.train_function = first_step


def _neutral(model: Model) -> list[Owner]:
    """The weights whose initializers of this library have no context."""
    return [
        owner
        for layer in [model, *keras_private.layers_of(model)]
        if _may_be_neutral(layer)
        for owner in owners(layer)
        if owner[2].context is None
    ]


def _may_be_neutral(layer: Layer) -> bool:
    """Whether it is worth looking at the values of a layer's weights."""
    attributes = keras_private.initializer_attributes(layer, ContextualInitializer)
    return (
        any(initializer.context is None for _, initializer in attributes)
        or bool(remembered(layer))
        or (has_drawn_for_no_layer() and bool(keras_private.own_variables(layer)))
    )


def _warn(model: Model, weights: list[Owner]) -> None:
    if not weights or model in _settled:
        return
    settle(model)
    count = "1 weight is" if len(weights) == 1 else f"{len(weights)} weights are"
    warnings.warn(
        f"Model {model.name!r}: training starts with contexts never injected: {count} drawn "
        f"without one ({weights[0][1].path!r}{', …' if weights[1:] else ''}). Call "
        "keras_varinit.inject(model) before `fit`, or pass keras_varinit.ContextInjector() to it.",
        stacklevel=2,
    )
