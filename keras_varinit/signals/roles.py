"""Roles: what a call of an operation is to the stages between kernels."""

import dataclasses
from typing import Any

from keras_varinit.keras_private import Shape
from keras_varinit.maths.fans import Fans
from keras_varinit.maths.quadrature import Activation, Pool
from keras_varinit.tracing.reader import Node


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


def operation_classes(operation: Any) -> tuple[type, ...]:
    """The class of an operation and its bases, the most specific first."""
    return type(operation).__mro__


def spatial_shape(shape: Shape, data_format: str) -> Shape:
    """The positions of a map: its shape without batch and channels."""
    return shape[1:-1] if data_format == "channels_last" else shape[2:]


def per_dimension(value: Any, rank: int) -> tuple[int, ...]:
    """A size given once or per dimension, per dimension."""
    return (value,) * rank if isinstance(value, int) else tuple(value)
