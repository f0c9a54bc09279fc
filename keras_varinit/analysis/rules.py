"""What each operation does to a signal, as far as contexts need it: one rule per layer family.

A rule takes a `Call` and returns a role. Rules are found by the operation's class and its bases,
or, for operations of `keras.ops`, by name. An operation without a rule gets the role `Unknown`,
which the analysis reports.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_varinit.analysis.reader import Node
from keras_varinit.fans import Fans
from keras_varinit.graph import Shape, is_raw_operation, operation_name
from keras_varinit.moments import Activation, Pool


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation: the graph's node, the shapes, and zeros put around its input."""

    node: Node
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    pads: tuple[tuple[int, int], ...] | None = None

    @property
    def operation(self) -> Any:
        """The layer or operation that is called."""
        return self.node.operation


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a weight layer; those of one layer with rising `level` act in turn.

    `reads_own_output` marks the recurrent kernel of a cell.
    """

    variable: Any
    fans: Fans
    level: int = 0
    reads_own_output: bool = False


@dataclasses.dataclass(frozen=True)
class Weights:
    """A layer with kernels, and the activation inside it."""

    kernels: tuple[Kernel, ...]
    activation: Activation | None = None


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """An activation, or any other function of each entry alone."""

    activation: Activation


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Pooling over `size` entries; None when the size of the map is unknown."""

    kind: str
    size: int | None

    def step(self) -> Pool | None:
        """The pooling as `moments` takes it."""
        return None if self.size is None else Pool(self.kind, self.size)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Transparent:
    """Leaves a stage as it is: normalization (`normalizes`), dropout, reshaping."""

    normalizes: bool = False


@dataclasses.dataclass(frozen=True)
class Padding:
    """Zeros around the map: (before, after) for each spatial dimension."""

    pads: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Merge:
    """Several signals become one of the same kind: add, multiply, average, maximum."""


@dataclasses.dataclass(frozen=True)
class Concatenation:
    """Several signals side by side along an axis."""

    axis: int


@dataclasses.dataclass(frozen=True)
class Source:
    """Makes a signal of its own: an embedding look-up's output, a constant."""


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Not modelled: there is no rule, or the rule does not cover this case, for `reason`."""

    reason: str = "no rule"


@dataclasses.dataclass(frozen=True)
class LeftAlone(Unknown):
    """A weight layer whose weights are not to be drawn, for `reason`."""


Role = (
    Weights
    | Elementwise
    | Pooling
    | Transparent
    | Padding
    | Merge
    | Concatenation
    | Source
    | Unknown
)
Rule = Callable[[Call], Role]

_BY_CLASS: dict[type, Rule] = {}
_BY_NAME: dict[str, Rule] = {}


def rule(*kinds: type | str) -> Callable[[Rule], Rule]:
    """Decorator: registers a rule for layer classes (with subclasses) and names of operations."""

    def decorate(function: Rule) -> Rule:
        for kind in kinds:
            if isinstance(kind, str):
                _BY_NAME[kind] = function
            else:
                _BY_CLASS[kind] = function
        return function

    return decorate


def role_of(call: Call) -> Role:
    """The role of a call, by the most specific rule there is."""
    operation = call.operation
    if is_raw_operation(operation):
        function = _BY_NAME.get(operation_name(operation))
        return Unknown() if function is None else function(call)
    for cls in type(operation).__mro__:
        if cls in _BY_CLASS:
            return _BY_CLASS[cls](call)
    return Unknown()


def registered() -> frozenset[type | str]:
    """The layer classes and names of operations that have a rule."""
    return frozenset({*_BY_CLASS, *_BY_NAME})


def has_rule(operation: Any) -> bool:
    """Whether there is a rule for an operation."""
    if is_raw_operation(operation):
        return operation_name(operation) in _BY_NAME
    return any(cls in _BY_CLASS for cls in type(operation).__mro__)


def has_own_rule(cls: type) -> bool:
    """Whether a rule was registered for that very class."""
    return cls in _BY_CLASS


def operation_classes(operation: Any) -> tuple[type, ...]:
    """The class of an operation and its bases, the most specific first."""
    return type(operation).__mro__


def layer_classes(*names: str) -> tuple[type, ...]:
    """Classes of `keras.layers` by name; those that the installed Keras lacks are left out."""
    found = (getattr(keras.layers, name, None) for name in names)
    return tuple(cls for cls in found if cls is not None)


def spatial_shape(shape: Shape, data_format: str) -> Shape:
    """The positions of a map: its shape without batch and channels."""
    return shape[1:-1] if data_format == "channels_last" else shape[2:]


def per_dimension(value: Any, rank: int) -> tuple[int, ...]:
    """A size given once or per dimension, per dimension."""
    return (value,) * rank if isinstance(value, int) else tuple(value)
