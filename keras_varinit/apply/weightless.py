"""Models whose weights have shapes only, so that models that no host holds can be planned."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import keras

from keras_varinit import keras_private
from keras_varinit.apply.report import DRAWN, PLANNED, ReportRow
from keras_varinit.tracing.names import variable_names
from keras_varinit.typing import Model


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Layers built in this context get weights with a shape and a type, but no value.

    Such a model takes no memory for its weights, whatever its size. `analyze`, `recommend` and
    `lint` read it; `inject` and `initialize` report what they would draw, and it is drawn when
    `create_weights` gives the weights their values: each shard on the host that holds it, if a
    `keras.distribution` has been set by then. Old and new weights are never held at the same time.

    Example:
        >>> import keras, keras_varinit as kv
        >>> with kv.without_weights():
        ...     layers = [keras.layers.Dense(2**20, "relu") for _ in range(4)]
        ...     model = keras.Sequential([keras.Input((2**20,)), *layers])
        >>> report = kv.initialize(model, "asv_forward", seed=0)
        >>> model.count_params() // 10**12, len(report.planned), len(report.drawn)
        (4, 8, 0)

    Layers that receive values in their constructor, such as `Normalization(mean=…)`,
    cannot be built in it; Keras raises an error.
    """
    with keras_private.without_values():
        yield


def create_weights(model: keras.Model) -> None:
    """Gives the weights of a model that was built `without_weights` their values.

    They are drawn by what `inject` or `initialize` planned last, or else by the layers' own
    initializers, and equal those of a model that was built with weights. Weights that have values
    are left as they are. If an error is raised, those that were created stay, and another call goes
    on from there.

    Args:
        model: A built `keras.Model` of any kind.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not built, or drawn values are not finite.

    Example:
        >>> import keras, keras_varinit as kv
        >>> with kv.without_weights():
        ...     model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> report = kv.initialize(model, seed=0)
        >>> kv.create_weights(model)
        >>> tuple(model.layers[0].kernel.shape)
        (8, 4)

    """
    for variable in keras_private.check_built(model).variables:
        if not keras_private.has_value(variable):
            keras_private.create_value(variable)


def with_planned(model: Model, rows: Iterable[ReportRow]) -> tuple[ReportRow, ...]:
    """Rows in which what has no value yet is planned, not drawn."""
    names = variable_names(model)
    waiting = {
        names[id(variable)][0]
        for variable in model.variables
        if id(variable) in names and not keras_private.has_value(variable)
    }
    return tuple(
        dataclasses.replace(row, status=PLANNED)
        if row.status == DRAWN and row.path in waiting
        else row
        for row in rows
    )
