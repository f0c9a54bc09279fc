"""Reading the entries of variables and tensors."""

import hashlib
import math
from collections.abc import Sequence
from typing import TypeAlias

import keras
import numpy as np

from keras_varinit.keras_private import has_value
from keras_varinit.sharding import (
    Index,
    Layout,
    assembled,
    counted_parts,
    indices,
    layout_of,
    on_host,
    parts_of,
    replicas_of,
    shape_of,
    summed,
)
from keras_varinit.threads import in_threads
from keras_varinit.typing import AnyArray, ArrayLike, FloatArray, Model, Variable

Digests: TypeAlias = tuple[tuple[Index, bytes], ...]

# Entries that are digested, checked or drawn at once.
CHUNK = 2**16


def to_numpy(variable: Variable) -> AnyArray:
    """A copy of a variable's value as a NumPy array."""
    return np.array(view(variable))


def view(value: Variable | ArrayLike) -> AnyArray:
    """The entries of a variable or tensor, not copied if the backend has them in host memory.

    Read them immediately: they may change with the variable.
    """
    return on_host(tensor_of(value))


def local_parts(value: Variable | ArrayLike) -> dict[Index, AnyArray]:
    """The parts of a variable or tensor that this host holds, as `view` gives the whole."""
    return parts_of(tensor_of(value))


def snapshot(variable: Variable) -> ArrayLike:
    """A variable's present value, for `assign`, unaffected by later assignments.

    On TensorFlow and JAX tensors are immutable, so nothing is copied.
    """
    tensor = tensor_of(variable)
    return keras.ops.copy(tensor) if keras.backend.backend() == "torch" else tensor


def digests(value: Variable | ArrayLike) -> Digests:
    """Digests of the parts of a variable or tensor that this host holds."""
    return tuple(sorted((index, digest(part)) for index, part in local_parts(value).items()))


def digest(values: AnyArray) -> bytes:
    """A digest of an array's entries, by which equal arrays are recognized."""
    entries = np.ascontiguousarray(values).reshape(-1)
    chunks = [entries[start : start + CHUNK] for start in range(0, entries.size, CHUNK)]
    digests = [b""] * len(chunks)

    def work(number: int) -> None:
        digests[number] = digest_of_chunk(chunks[number])

    in_threads(work, len(chunks))
    return joined(digests)


def digest_of_chunk(chunk: AnyArray) -> bytes:
    """The digest of at most `CHUNK` contiguous entries."""
    return hashlib.sha256(chunk.view(np.uint8).data).digest()


def joined(digests: Sequence[bytes]) -> bytes:
    """The digest of an array from those of its chunks."""
    return hashlib.sha256(b"".join(digests)).digest()


def tensor_of(value: Variable | ArrayLike) -> ArrayLike:
    """The backend's tensor of a Keras variable; any other value unchanged.

    Raises:
        ValueError: the variable has no value yet, and is too large to draw one to look at.
    """
    if not isinstance(value, keras.Variable):
        return value
    if not has_value(value) and math.prod(value.shape) > CHUNK:
        raise ValueError(
            f"{value.path!r} has no value yet: its model was built without weights. Call "
            "keras_varinit.create_weights(model)."
        )
    tensor = value.value
    return tensor.read_value() if hasattr(tensor, "read_value") else tensor


def layout_of_variable(variable: Variable) -> Layout | None:
    """The layout of a variable that lies on several devices; None for any other."""
    return layout_of(tensor_of(variable)) if keras.backend.backend() == "jax" else None


def moments(value: Variable | ArrayLike) -> tuple[float, float]:
    """The mean and the mean square of all entries, summed where they are; nothing is gathered."""
    tensor = tensor_of(value)
    sums: list[FloatArray] = [np.zeros(2)]
    for part in counted_parts(tensor):
        entries = np.ascontiguousarray(part).reshape(-1)

        def work(number: int, entries: AnyArray = entries) -> None:
            chunk = np.asarray(entries[number * CHUNK : (number + 1) * CHUNK], np.float64)
            sums.append(np.asarray([chunk.sum(), np.dot(chunk, chunk)]))

        in_threads(work, -(-entries.size // CHUNK))
    mean, square = summed(np.sum(sums, axis=0), tensor) / math.prod(tensor.shape)
    return float(mean), float(square)


def is_constant(value: Variable | ArrayLike) -> bool:
    """Whether all entries that this host holds are equal, or none is a number."""
    parts = [part for part in local_parts(value).values() if part.size]
    first = parts[0].flat[0] if parts else None
    for part in parts:
        entries = part.reshape(-1)
        for some in (entries[:CHUNK], entries):  # the first ones usually tell
            if not np.all(some == first) and not np.all(np.isnan(some)):
                return False
    return True


def key_of(digests: Digests) -> bytes:
    """One digest of an array from those of its parts."""
    return hashlib.sha256(repr(digests).encode()).digest()


def is_same(variable: Variable, value: ArrayLike) -> bool:
    """Whether a variable has a value, bit for bit, in all parts that this host holds."""
    parts, others = local_parts(variable), local_parts(value)
    if parts.keys() != others.keys():
        return False
    return all(np.array_equal(values, others[index]) for index, values in parts.items())


def is_known_to_be(variable: Variable, value: ArrayLike) -> bool:
    """Whether a small variable of which there is one copy has a value, bit for bit."""
    is_small = math.prod(variable.shape) <= CHUNK
    return is_small and not replicas_of(variable.value) and is_same(variable, value)


def zeros_like(variable: Variable) -> ArrayLike:
    """Zeros of a variable's shape and type, in its layout."""
    shape, layout = tuple(int(n) for n in variable.shape), layout_of_variable(variable)
    parts = {index: np.zeros(shape_of(index), variable.dtype) for index in indices(layout, shape)}
    return assembled(layout, shape, parts)


def training_steps(model: Model) -> int:
    """Number of optimizer steps taken so far."""
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(to_numpy(optimizer.iterations))
