"""Reading the entries of variables and tensors."""

import hashlib

import keras
import numpy as np

from keras_varinit.typing import AnyArray, ArrayLike, Model, Variable


def to_numpy(variable: Variable) -> AnyArray:
    """A copy of a variable's value as a NumPy array."""
    return np.array(keras.ops.convert_to_numpy(variable))


def view(value: Variable | ArrayLike) -> AnyArray:
    """The entries of a variable or tensor, not copied if the backend has them in host memory.

    Read them immediately: they may change with the variable.
    """
    tensor = _tensor(value)
    if keras.backend.backend() == "torch":
        return np.asarray(keras.ops.convert_to_numpy(tensor))
    return np.asarray(tensor)


def snapshot(variable: Variable) -> ArrayLike:
    """A variable's present value, for `assign`, unaffected by later assignments.

    On TensorFlow and JAX tensors are immutable, so nothing is copied.
    """
    tensor = _tensor(variable)
    return keras.ops.copy(tensor) if keras.backend.backend() == "torch" else tensor


def digest(values: AnyArray) -> bytes:
    """A digest of an array's entries, by which equal arrays are recognized."""
    entries = np.ascontiguousarray(values).reshape(-1)
    return hashlib.sha256(entries.view(np.uint8).data).digest()


def _tensor(value: Variable | ArrayLike) -> ArrayLike:
    """The backend's tensor of a Keras variable; any other value unchanged."""
    if not isinstance(value, keras.Variable):
        return value
    tensor = value.value
    return tensor.read_value() if hasattr(tensor, "read_value") else tensor


def training_steps(model: Model) -> int:
    """Number of optimizer steps taken so far."""
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(to_numpy(optimizer.iterations))
