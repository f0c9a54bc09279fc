"""The argument `layers`: selecting layers of a model by name or by predicate."""

from collections.abc import Callable, Sequence

import keras

from keras_varinit import keras_private
from keras_varinit.arguments import did_you_mean
from keras_varinit.typing import Layer, Model

Selection = Callable[[keras.Layer], bool] | Sequence[str] | None


def selected_layers(model: Model, layers: Selection, owner: str) -> tuple[list[Layer], set[int]]:
    """The selected layers, and the `id` of each that was selected itself.

    A name also selects all layers inside the layer; a predicate is called with each of them.

    Raises:
        TypeError: `layers` is a string.
        ValueError: it names a layer that the model lacks. Messages begin with `owner`.
    """
    everything = [model, *keras_private.layers_of(model)]
    if layers is None:
        return everything, set()
    if callable(layers):
        selected = [layer for layer in everything if layers(layer)]
        return selected, {id(layer) for layer in selected}
    if isinstance(layers, str):
        raise TypeError(
            f"{owner}: `layers` must be a predicate or a list of names. Received: {layers!r}."
        )
    names = {layer.name for layer in everything}
    for name in layers:
        if name not in names:
            raise ValueError(
                f"{owner}: `layers` names {name!r}, which model {model.name!r} lacks."
                f"{did_you_mean(name, names)}"
            )
    named = [layer for layer in everything if layer.name in set(layers)]
    inside = {id(each) for layer in named for each in (layer, *keras_private.layers_of(layer))}
    return [layer for layer in everything if id(layer) in inside], {id(layer) for layer in named}
