"""The points of a model at which signals are measured: one per call of a layer or operation."""

import dataclasses
from collections.abc import Iterable, Sequence

import keras

from keras_varinit.families.activations import activation_of
from keras_varinit.keras_private import Shape, ends_with_activation, is_raw_operation
from keras_varinit.maths.quadrature import Activation
from keras_varinit.signals.registry import role_of
from keras_varinit.signals.roles import Call, Elementwise, Role, Transparent, Unknown, Weights
from keras_varinit.tracing.reader import Node
from keras_varinit.typing import Operation, Variable

_OF_ROWS = ("softmax", "log_softmax", "sparsemax")

_OF_THE_LOSS = (*_OF_ROWS, "sigmoid", "log_sigmoid")

# Element-wise functions that are not activations: they have no dead or saturated units.
_ARITHMETIC = ("absolute", "abs", "fabs", "negative", "square", "sign", "sin", "cos", "exp")


@dataclasses.dataclass(frozen=True)
class Point:
    """A call of an operation whose output is measured.

    Attributes:
        name: Name of the call; see `Namer`.
        operation: The layer or raw operation.
        kind: "weights", "activation" or "other".
        splits: Whether the layer ends with an activation, so that the signal is its input.
        function: The layer's activation, or the operation itself if it is one; None otherwise.
        kernel: The variable whose prediction describes this signal, or None.
        channel_axis: The channel axis of the signal.
        role: The call's role in the analysis.
    """

    name: str
    operation: Operation
    kind: str
    splits: bool = False
    function: Activation | None = None
    kernel: Variable | None = None
    channel_axis: int = -1
    role: Role = dataclasses.field(default_factory=Unknown, repr=False)

    @property
    def belongs_to_the_loss(self) -> bool:
        """Whether its function at the model's output is usually part of the loss, as softmax."""
        return self.function is not None and self.function.name in _OF_THE_LOSS

    @property
    def is_elementwise(self) -> bool:
        """Whether its function is element-wise, so that units can die or saturate."""
        return self.function is not None and self.function.name not in _OF_ROWS


class Namer:
    """Names calls: the operation's name, from the second call on with its number, "name#2"."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """The name of the next call of an operation named `name`."""
        count = self.seen[name] = self.seen.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"


def normalized_embeddings(points: Iterable[Point]) -> set[str]:
    """Names of the embeddings that a normalization follows, in the order of the points.

    It must precede any layer with kernels that is not an embedding.
    """
    normalized, pending = set(), set()
    for point in points:
        if isinstance(point.operation, keras.layers.Embedding):
            pending.add(point.name)
        elif isinstance(point.role, Transparent) and point.role.normalizes:
            normalized |= pending
        elif point.kind == "weights":
            pending = set()
    return normalized


def point_of(
    operation: Operation,
    name: str,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    node: Node | None,
) -> Point:
    """The point of a call."""
    role = _role(operation, inputs, outputs, node)
    axis = _channel_axis(operation, len(outputs[0]) if outputs else 2)
    function = None
    if isinstance(role, Weights):
        splits = ends_with_activation(operation)
        if splits:
            function = activation_of(operation.activation)
        # No prediction applies inside a recurrent layer, or if the activation may come earlier.
        inside = any(kernel.reads_own_output for kernel in role.kernels)
        comparable = splits or (role.activation is None and not inside)
        kernel = max(role.kernels, key=lambda k: k.level).variable if comparable else None
        return Point(name, operation, "weights", splits, function, kernel, axis, role)
    splits = ends_with_activation(operation)
    if isinstance(role, Elementwise) and not _is_arithmetic(operation, role.activation):
        return Point(name, operation, "activation", False, role.activation, None, axis, role)
    kind = "weights" if splits else "other"
    function = _activation_or_none(operation, splits)
    return Point(name, operation, kind, splits, function, None, axis, role)


def _role(
    operation: Operation, inputs: Sequence[Shape], outputs: Sequence[Shape], node: Node | None
) -> Role:
    try:
        call = Call(node or Node(-1, operation, (0,), (0,)), tuple(inputs), tuple(outputs))
        return role_of(call)
    except (ValueError, IndexError, TypeError, AttributeError):
        # Rules count fans from shapes; a signal can be measured even where they cannot.
        return Unknown()


def _activation_or_none(operation: Operation, splits: bool) -> Activation | None:
    if not splits:
        return None
    try:
        return activation_of(operation.activation)
    except ValueError:
        return None


def _is_arithmetic(operation: Operation, function: Activation) -> bool:
    names = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power")
    with_number = is_raw_operation(operation) and type(operation).__name__ in names
    return with_number or function.name in _ARITHMETIC


def _channel_axis(operation: Operation, rank: int) -> int:
    own_format = getattr(operation, "data_format", None)
    data_format = own_format or keras.config.image_data_format()
    return 1 if data_format == "channels_first" and rank > (2 if own_format else 3) else -1
