"""Where a model's signal is looked at: one point per call of a layer or operation."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_varinit.families.activations import activation_of
from keras_varinit.keras_private import Shape, is_raw_operation
from keras_varinit.maths.quadrature import Activation
from keras_varinit.signals.registry import layer_classes, role_of
from keras_varinit.signals.roles import Call, Elementwise, Role, Transparent, Unknown, Weights
from keras_varinit.tracing.reader import Node

# Their `call` ends with `self.activation`, so without it they give the pre-activation.
_SPLIT = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    *layer_classes(
        *(f"Conv{n}D{kind}" for n in (1, 2, 3) for kind in ("", "Transpose")),
        *(f"{kind}Conv{n}D" for n in (1, 2) for kind in ("Depthwise", "Separable")),
    ),
)

_OF_ROWS = ("softmax", "log_softmax", "sparsemax")

_OF_THE_LOSS = (*_OF_ROWS, "sigmoid", "log_sigmoid")

# Functions of each entry that are no activations, so that no unit dies or saturates by them.
_ARITHMETIC = ("absolute", "abs", "fabs", "negative", "square", "sign", "sin", "cos", "exp")


@dataclasses.dataclass(frozen=True)
class Point:
    """A call whose output is looked at.

    `splits` says that the layer has an activation inside, in front of which the signal is taken.
    `function` is the activation inside, or the one that this call is; None for none.
    `kernel` is the variable that a prediction about this signal is filed under. `role` is what the
    analysis says of the call.
    """

    name: str
    operation: Any
    kind: str
    splits: bool = False
    function: Activation | None = None
    kernel: Any = None
    channel_axis: int = -1
    role: Role = dataclasses.field(default_factory=Unknown, repr=False)

    @property
    def belongs_to_the_loss(self) -> bool:
        """Whether its function is one that, at the model's output, the loss is defined with."""
        return self.function is not None and self.function.name in _OF_THE_LOSS

    @property
    def is_elementwise(self) -> bool:
        """Whether its function is one of each entry alone, so that units can die or saturate."""
        return self.function is not None and self.function.name not in _OF_ROWS


class Namer:
    """Names of calls: the operation's, and from the second call on with its number."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """The name of the next call of an operation of that name."""
        count = self.seen[name] = self.seen.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"


def normalized_embeddings(points: Iterable[Point]) -> set[str]:
    """Names of the embeddings after which, in the order of the points, a normalization comes first.

    First before any layer with kernels that is no embedding.
    """
    found, waiting = set(), set()
    for point in points:
        if isinstance(point.operation, keras.layers.Embedding):
            waiting.add(point.name)
        elif isinstance(point.role, Transparent) and point.role.normalizes:
            found |= waiting
        elif point.kind == "weights":
            waiting = set()
    return found


def point_of(
    operation: Any, name: str, inputs: Sequence[Shape], outputs: Sequence[Shape], node: Node | None
) -> Point:
    """The point of a call."""
    role = _role(operation, inputs, outputs, node)
    axis = _channel_axis(operation, len(outputs[0]) if outputs else 2)
    function = None
    if isinstance(role, Weights):
        splits = _splits(operation)
        if splits:
            function = activation_of(operation.activation)
        # Inside a recurrent layer or behind an activation of unknown place no prediction applies.
        inside = any(kernel.reads_own_output for kernel in role.kernels)
        comparable = splits or (role.activation is None and not inside)
        kernel = max(role.kernels, key=lambda k: k.level).variable if comparable else None
        return Point(name, operation, "weights", splits, function, kernel, axis, role)
    splits = _splits(operation)
    if isinstance(role, Elementwise) and not _is_arithmetic(operation, role.activation):
        return Point(name, operation, "activation", False, role.activation, None, axis, role)
    kind = "weights" if splits else "other"
    function = _activation_or_none(operation, splits)
    return Point(name, operation, kind, splits, function, None, axis, role)


def _role(
    operation: Any, inputs: Sequence[Shape], outputs: Sequence[Shape], node: Node | None
) -> Role:
    try:
        call = Call(node or Node(-1, operation, (0,), (0,)), tuple(inputs), tuple(outputs))
        return role_of(call)
    except (ValueError, IndexError, TypeError, AttributeError):
        # A rule counts fans from shapes; what it cannot count is still a signal to look at.
        return Unknown()


def _splits(operation: Any) -> bool:
    """Whether Keras's own `call` runs, with an activation at its end."""
    if not isinstance(operation, _SPLIT) or "call" in vars(operation):
        return False
    function = getattr(operation, "activation", None)
    own = getattr(type(operation).call, "__module__", "").startswith("keras.")
    return own and function is not None and function is not keras.activations.linear


def _activation_or_none(operation: Any, splits: bool) -> Activation | None:
    if not splits:
        return None
    try:
        return activation_of(operation.activation)
    except ValueError:
        return None


def _is_arithmetic(operation: Any, function: Activation) -> bool:
    names = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power")
    with_number = is_raw_operation(operation) and type(operation).__name__ in names
    return with_number or function.name in _ARITHMETIC


def _channel_axis(operation: Any, rank: int) -> int:
    stated = getattr(operation, "data_format", None)
    data_format = stated or keras.config.image_data_format()
    return 1 if data_format == "channels_first" and rank > (2 if stated else 3) else -1
