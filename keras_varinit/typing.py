"""Types of what Keras leaves untyped; private to this package.

Keras ships no types, so its objects are `Any` to a type checker. These protocols name the
attributes that this library relies on; `Any` is left for what a single class of layers adds.
Public functions are annotated with Keras's own classes, which other type checkers can read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

# Tensors or arrays nested in lists, tuples and dictionaries, as `keras.tree` takes them.
Nested: TypeAlias = Any

# A number, array or tensor of the backend: what `keras.ops` takes.
ArrayLike: TypeAlias = Any

# An array whose dtype is only known at run time.
AnyArray: TypeAlias = npt.NDArray[Any]

# Arguments of a call of unknown signature, and a function of unknown signature.
Args: TypeAlias = Sequence[Any]
Kwargs: TypeAlias = Mapping[str, Any]
Function: TypeAlias = Callable[..., Any]

# What `to_dict` and `get_config` return: JSON primitives.
Config: TypeAlias = dict[str, Any]

# A `pandas.DataFrame`, of a package that is imported late and need not be installed.
Dataframe: TypeAlias = Any

FloatArray: TypeAlias = npt.NDArray[np.float64]


class Tensor(Protocol):
    """A tensor of the backend or a NumPy array, with what all of them share."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    @property
    def dtype(self) -> Any:
        """A type of the backend's own."""


class SymbolicTensor(Protocol):
    """A `keras.KerasTensor`: a shape, None for unknown sizes, and a dtype without values."""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Sizes of the axes, None where unknown."""

    @property
    def dtype(self) -> str:
        """Keras's name of the dtype."""


class Variable(Protocol):
    """A `keras.Variable`."""

    name: str
    path: str
    trainable: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    @property
    def dtype(self) -> str:
        """Keras's name of the dtype."""

    @property
    def value(self) -> Any:
        """The backend's tensor or variable."""

    def assign(self, value: ArrayLike) -> object:
        """Sets the value."""

    def __getattr__(self, name: str) -> Any:
        """What is private to Keras."""


class Initializer(Protocol):
    """A `keras.initializers.Initializer`."""

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Returns a tensor."""

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""

    def __getattr__(self, name: str) -> Any:
        """Whatever else its class has."""


class Operation(Protocol):
    """A `keras.Operation`: a layer, or one call of a function of `keras.ops`."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the outputs, and records the call on symbolic tensors."""

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the outputs."""

    def __getattr__(self, name: str) -> Any:
        """Whatever else its class has."""


class Layer(Operation, Protocol):
    """A `keras.Layer`."""

    built: bool
    trainable: bool

    @property
    def weights(self) -> list[Variable]:
        """Its variables and those of the layers inside it, seeds and metrics left out."""

    @property
    def variables(self) -> list[Variable]:
        """All its variables and those of the layers inside it."""


class Model(Layer, Protocol):
    """A `keras.Model`."""

    train_function: Any

    @property
    def layers(self) -> list[Layer]:
        """Its direct layers."""

    def get_weights(self) -> list[AnyArray]:
        """The values of its weights."""

    def set_weights(self, weights: Sequence[AnyArray]) -> None:
        """Sets the values of its weights."""


class CallArguments(Protocol):
    """Arguments of a recorded call, symbolic tensors among them; see `call_arguments`."""

    @property
    def args(self) -> Sequence[Any]:
        """The positional arguments."""

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments."""

    @property
    def keras_tensors(self) -> Sequence[SymbolicTensor]:
        """The symbolic tensors among them, flat."""

    def fill_in(self, tensors: Mapping[int, ArrayLike]) -> tuple[Any, Any]:
        """The arguments with tensors, by the `id` of the symbolic ones, in their places."""


class RecordedNode(Protocol):
    """A record of a call: one of Keras's nodes, or a `RecordedCall`."""

    @property
    def operation(self) -> Operation:
        """What was called."""

    @property
    def arguments(self) -> CallArguments:
        """What it was called on."""

    @property
    def input_tensors(self) -> Sequence[SymbolicTensor]:
        """The symbolic tensors among the arguments."""

    @property
    def output_tensors(self) -> Sequence[SymbolicTensor]:
        """What it returned."""
