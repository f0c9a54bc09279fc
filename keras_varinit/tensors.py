"""The entries of variables and tensors."""

import hashlib
from typing import Any

import keras
import numpy as np
import numpy.typing as npt


def to_numpy(variable: Any) -> npt.NDArray[Any]:
    """A copy of a variable's value; half-precision values in a NumPy type that holds them."""
    return np.array(keras.ops.convert_to_numpy(variable))


def view(value: Any) -> npt.NDArray[Any]:
    """The entries of a variable or tensor, without a copy where the backend has them in memory.

    For reading at once: they may change with the variable.
    """
    tensor = _tensor(value)
    if keras.backend.backend() == "torch":
        return np.asarray(keras.ops.convert_to_numpy(tensor))
    return np.asarray(tensor)


def snapshot(variable: Any) -> Any:
    """A variable's present value, as something that `assign` takes and that no assignment changes.

    On TensorFlow and JAX tensors do not change, so this copies nothing there.
    """
    tensor = _tensor(variable)
    return keras.ops.copy(tensor) if keras.backend.backend() == "torch" else tensor


def digest(values: npt.NDArray[Any]) -> bytes:
    """A digest of an array's entries: how equal values are recognized."""
    entries = np.ascontiguousarray(values).reshape(-1)
    return hashlib.sha256(entries.view(np.uint8).data).digest()


def _tensor(value: Any) -> Any:
    """The backend's tensor that a Keras variable holds; anything else as it is."""
    if not isinstance(value, keras.Variable):
        return value
    held = value.value
    return held.read_value() if hasattr(held, "read_value") else held


def training_steps(model: Any) -> int:
    """Optimizer steps taken so far."""
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(to_numpy(optimizer.iterations))
