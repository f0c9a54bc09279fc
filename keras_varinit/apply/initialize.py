"""`initialize`: redrawing any built model with any scheme."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias

import keras

from keras_varinit.analysis.contexts import read
from keras_varinit.apply.plan import Plan
from keras_varinit.apply.report import Report
from keras_varinit.apply.selection import Selection, selected_layers
from keras_varinit.apply.transaction import commit
from keras_varinit.apply.weightless import with_planned
from keras_varinit.arguments import Arguments, did_you_mean
from keras_varinit.context import LayerContext
from keras_varinit.initializers.laws import initializer_names
from keras_varinit.seeds import random_kept
from keras_varinit.typing import Initializer, Model

_Named: TypeAlias = str | keras.initializers.Initializer

Scheme: TypeAlias = _Named | Callable[[LayerContext], _Named | None]


def initialize(
    model: keras.Model,
    scheme: Scheme = "recommended",
    *,
    seed: int | None = None,
    layers: Selection = None,
    include_frozen: bool = False,
    reset_optimizer: bool = False,
) -> Report:
    """Redraws the weights of a built model, whatever their present values.

    Every kernel is drawn by `scheme`, in its own random stream. The other weights of the same
    layers (biases, normalization weights and statistics, embeddings) are redrawn by their layers'
    own initializers; those of this library that are for biases or scales get their context. Where
    Keras miscounts fans (depthwise, transposed and grouped kernels), its variance-scaling
    initializers get the scale that follows from the true fans, and the report's notes say so. If an
    error is raised, no weight has changed.

    Sharded weights (`keras.distribution`) are drawn shard by shard, each host drawing its own; all
    hosts must call. In a model built `without_weights` the draws are planned.

    Args:
        model: A built `keras.Model` of any kind.
        scheme: A string id, of this library or of Keras; an initializer; or a function that takes a
            `LayerContext` and returns either, or None to leave that kernel alone. Defaults to
            `"recommended"`: each weight by what it is for, as `recommend(model)` shows; where no
            rule applies, by the layer's own initializer.
        seed: Integer or None. An integer gives the same weights on every machine, also on every
            backend (except by initializers that draw with the backend's generator, such as Keras's
            `Orthogonal`), and leaves Python's `random` untouched; None gives fresh weights at every
            call (unless `scheme` is an object with its own seed).
        layers: Which layers: a list of names, each of which selects that layer and all layers
            inside it; a predicate, called with every layer, inner ones included; or None for all.
            Embeddings are drawn by `scheme` only if they are selected themselves.
        include_frozen: Whether to redraw frozen layers too.
        reset_optimizer: Whether to set the optimizer's state (momenta, step count) to zero.

    Returns:
        A `Report` with one row per weight of the selected layers.

    Raises:
        TypeError: `model`, `scheme` or `seed` has the wrong type.
        ValueError: the model is not built, an initializer or layer name is unknown, `scheme` draws
            no kernels, no kernel is selected, or a drawn value is not finite.

    Example:
        >>> import keras, keras_varinit as kv
        >>> model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3))
        >>> len(kv.initialize(model, "asv_backward", seed=0).drawn) > 50
        True
    """
    seed = Arguments("initialize").seed(seed)
    with contextlib.nullcontext() if seed is None else random_kept(seed):
        plan = _planned(model, scheme, seed, layers, include_frozen)
        commit(model, plan.changes, reset_optimizer=reset_optimizer)
    return Report(with_planned(model, plan.rows), tuple(plan.notes))


def _planned(
    model: Model, scheme: Scheme, seed: int | None, layers: Selection, include_frozen: bool
) -> Plan:
    """Plans all draws without changing the model."""
    reading = read(model)
    selected, explicit = selected_layers(model, layers, "initialize")
    plan = Plan(model, reading, seed, include_frozen)
    plan.choose(_resolver(scheme), selected, explicit)
    if _is_initializer(scheme):
        plan.choose_vectors(_resolved(scheme), selected)
    plan.find_signal_gains()
    for layer in selected:
        plan.add_layer(layer, explicit)
    if not plan.kernels:
        raise ValueError(
            f"initialize: no kernel of model {model.name!r} is selected. Received: "
            f"layers={layers!r}; known kernels: {list(reading.contexts)[:5]}."
            + ("" if reading.contexts else " ".join(("", *reading.notes[:1])))
        )
    plan.keep_apart()
    return plan


def _resolver(scheme: Any) -> Callable[[LayerContext], Initializer | None]:
    """Wraps the scheme as a function from a context to an initializer or None."""
    if not _is_initializer(scheme):
        return lambda context: _returned(scheme(context), context)
    initializer = _resolved(scheme)
    return lambda context: initializer


def _is_initializer(scheme: Any) -> bool:
    """Whether a scheme is an initializer or names one, rather than a function of a context."""
    return not callable(scheme) or isinstance(scheme, keras.initializers.Initializer | type)


def _returned(value: Any, context: LayerContext) -> Initializer | None:
    """The initializer that a function returned for a kernel."""
    if value is None:
        return None
    wanted = f"return a string id, an initializer or None, but for {context.path!r} it returned"
    message = f"initialize: the function `scheme` must {wanted}: {value!r}."
    initializer: Initializer = _resolved(value, message)
    return initializer


def _resolved(scheme: Any, message: str | None = None) -> keras.initializers.Initializer:
    initializer: Initializer
    try:
        initializer = keras.initializers.get(scheme)
    except (ValueError, TypeError) as error:
        wrong = message or (
            "initialize: `scheme` must name an initializer of Keras or of keras_varinit. "
            f"Received: scheme={scheme!r}."
        )
        raise ValueError(f"{wrong}{did_you_mean(scheme, initializer_names())}") from error
    if not isinstance(initializer, keras.initializers.Initializer):
        raise TypeError(
            message
            or "initialize: `scheme` must be a string id, an initializer, or a function that takes "
            f"a LayerContext and returns one of them. Received: scheme={scheme!r}."
        )
    return initializer
