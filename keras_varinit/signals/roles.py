"""Roles of calls in the stages between kernels."""

import dataclasses
from typing import Any

from keras_varinit.keras_private import Shape
from keras_varinit.maths.fans import Fans
from keras_varinit.maths.quadrature import Activation, Pool
from keras_varinit.tracing.reader import Node
from keras_varinit.typing import Variable


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation: its node in the graph, its shapes, and zero padding of its input.

    `pads` holds (before, after) for each spatial dimension, None without padding.
    """

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
    """A kernel of a weight layer.

    Kernels of one layer are applied in order of `level`; `reads_own_output` marks the recurrent
    kernel of a cell.
    """

    variable: Variable
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
    """An activation, or another element-wise function of one signal."""

    activation: Activation


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Pooling over `size` entries; None when the size of the map is unknown."""

    kind: str
    size: int | None

    def step(self) -> Pool | None:
        """The pooling as the formulas of `maths.quadrature` take it."""
        return None if self.size is None else Pool(self.kind, self.size)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Transparent:
    """Does not change a stage: normalization (`normalizes`), dropout, reshaping."""

    normalizes: bool = False


@dataclasses.dataclass(frozen=True)
class Padding:
    """Zero padding: (before, after) for each spatial dimension."""

    pads: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Merge:
    """Combines several signals entry by entry: add, multiply, average, maximum."""


@dataclasses.dataclass(frozen=True)
class Concatenation:
    """Joins several signals along an axis."""

    axis: int


@dataclasses.dataclass(frozen=True)
class Source:
    """Starts a new signal: a constant, or the output of an embedding."""


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Not modelled: no rule exists, or the rule does not cover this case; `reason` says why."""

    reason: str = "no rule"


@dataclasses.dataclass(frozen=True)
class LeftAlone(Unknown):
    """A weight layer whose weights must not be drawn; `reason` says why."""


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


def spatial_shape(shape: Shape, data_format: str) -> Shape:
    """The spatial part of a shape, without batch and channels."""
    return shape[1:-1] if data_format == "channels_last" else shape[2:]


def per_dimension(value: Any, rank: int) -> tuple[int, ...]:
    """Expands an integer to one value per dimension."""
    return (value,) * rank if isinstance(value, int) else tuple(value)
