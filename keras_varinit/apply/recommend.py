"""`recommend`: what `initialize(model)` would draw, weight by weight, and why."""

import dataclasses
from typing import Any, ClassVar

import keras

from keras_varinit import keras_private
from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.result import Reading
from keras_varinit.context import LayerContext
from keras_varinit.initializers.recommended import OWN, Recommended, rule_for
from keras_varinit.results import Results, Row
from keras_varinit.tables import Column
from keras_varinit.typing import Config, Initializer, Layer, Variable


@dataclasses.dataclass(frozen=True)
class Recommendation(Row):
    """What is recommended for one weight.

    Args:
        path: Path of the variable.
        role: What it is for, as in `LayerContext`; `"other"` where that is not known.
        choice: The initializer, as a configuration that `keras.initializers.get` takes; None for a
            weight that is left as it is.
        reason: The rule, and where to find its evidence.
    """

    path: str
    role: str
    choice: Config | None
    reason: str

    def to_record(self) -> dict[str, Any]:
        """One line of a dataframe, in which the choice is shown as in the table."""
        return {**super().to_record(), "choice": _shown(self.choice)}


@dataclasses.dataclass(frozen=True, repr=False)
class Recommendations(Results[Recommendation]):
    """Rows in model order; see `Results` for what all reports share.

    Attributes:
        rows: A `Recommendation` for each floating-point weight.
    """

    rows: tuple[Recommendation, ...]

    _row: ClassVar[type[Row]] = Recommendation
    _columns: ClassVar[tuple[Column, ...]] = (
        Column("weight", kind="path"),
        Column("role", "what the weight is for"),
        Column("initializer"),
        Column("reason", kind="reason"),
    )
    _main: ClassVar[str] = "kernels"
    _others: ClassVar[str] = "biases, scales and statistics"

    def _cells(self, row: Recommendation) -> tuple[str, ...]:
        return row.path, row.role, _shown(row.choice), row.reason

    def _is_main(self, row: Recommendation) -> bool:
        return row.role not in ("bias", "scale", "other")

    def _label(self, row: Recommendation) -> str:
        return _shown(row.choice)


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
            if not keras.backend.is_float_dtype(variable.dtype):
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
