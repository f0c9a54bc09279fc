"""`recommend`: what `initialize(model)` would draw, weight by weight, and why."""

import dataclasses
from collections.abc import Iterator

import keras

from keras_varinit import keras_private
from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.result import Reading
from keras_varinit.context import LayerContext
from keras_varinit.initializers.recommended import OWN, Recommended, rule_for
from keras_varinit.tables import text_table
from keras_varinit.typing import Config, Initializer, Layer, Variable


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What is recommended for one weight.

    Args:
        path: Path of the variable.
        role: What it is for, as in `LayerContext`; `"other"` where that is not known.
        choice: The initializer, as a configuration that `keras.initializers.get` takes; None for a
            weight that is left as it is.
        reason: The rule, and where its evidence stands.
    """

    path: str
    role: str
    choice: Config | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Recommendations:
    """Rows in model order; iterable, and `str` formats them as a table.

    `recommendations[path]` is the row of a weight, and `path in recommendations` tells whether it
    has one.
    """

    rows: tuple[Recommendation, ...]

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, item: object) -> bool:
        return any(item in (row.path, row) for row in self.rows)

    def __getitem__(self, path: str) -> Recommendation:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(f"no row for {path!r}. Paths: {[row.path for row in self.rows]}")

    def __str__(self) -> str:
        cells = [(row.path, row.role, _shown(row.choice), row.reason) for row in self.rows]
        return text_table(("weight", "role", "initializer", "reason"), cells)

    __repr__ = __str__


NO_INITIALIZER = "its use is unknown, and its layer stores no initializer for it"


def recommend(model: keras.Model) -> Recommendations:
    """Returns what `initialize(model)` would draw for each weight, and why.

    Nothing is changed.

    Args:
        model: A built `keras.Model` of any kind.

    Returns:
        `Recommendations`, rows with `path`, `role`, `choice` and `reason`; `choice` is None for
        weights that stay as they are.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not built.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layers = [keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(2)]
        >>> [row.role for row in kv.recommend(keras.Sequential(layers))]
        ['kernel', 'bias', 'head', 'bias']
    """
    reading = read(model)
    rows = []
    for layer in [model, *keras_private.layers_of(model)]:
        for variable in keras_private.own_variables(layer):
            if not keras_private.is_float(variable):
                continue
            context = reading.surroundings_of(variable)
            rows.append(_row(layer, variable, context, reading))
    return Recommendations(tuple(rows))


def own_initializer(layer: Layer, variable: Variable) -> Initializer | None:
    """The initializer that a layer stores for a variable, or None."""
    attribute = dict(keras_private.initializers_of(layer)).get(id(variable))
    return None if attribute is None else getattr(layer, attribute)


def _row(
    layer: Layer, variable: Variable, context: LayerContext | None, reading: Reading
) -> Recommendation:
    own = own_initializer(layer, variable)
    path = variable.path if context is None else context.path
    role = "other" if context is None else context.role
    is_kernel = context is not None and context.kind == "kernel"
    leave = reading.reason_to_leave(variable)
    if leave is None and own is None and not is_kernel:
        leave = reading.reason_listed(variable) or NO_INITIALIZER
    if leave is not None:
        return Recommendation(path, role, None, leave)
    rule = None if context is None else rule_for(context)
    choice = own or Recommended()
    if rule is not None:
        choice = rule.initializer(None, own)
    reason = OWN if rule is None else rule.reason
    return Recommendation(path, role, keras.initializers.serialize(choice), reason)


def _shown(choice: Config | None) -> str:
    """A choice by its name and the arguments that are not None."""
    if choice is None:
        return "-"
    arguments = {
        key: value["class_name"] if isinstance(value, dict) else value
        for key, value in choice["config"].items()
        if value is not None and key not in ("seed", "context")
    }
    shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{choice['class_name']}({shown})"
