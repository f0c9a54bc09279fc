"""Arrays and datasets of any kind as a stream of batches."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_varinit.arguments import Arguments
from keras_varinit.typing import ArrayLike, Nested


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples, with their targets and sample weights, if any."""

    x: Nested
    y: Nested = None
    sample_weight: Nested = None

    @property
    def size(self) -> int:
        """Number of examples."""
        return int(np.shape(keras.tree.flatten(self.x)[0])[0])


class Batches:
    """Batches of arrays or of a dataset; each iteration starts from the beginning.

    Args:
        x: Arrays, nested in lists or dictionaries as the model takes them, or a dataset: a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, a `torch` `DataLoader` or another
            iterable of batches `x`, `(x, y)` or `(x, y, sample_weight)`.
        y: Arrays of targets, or None.
        batch_size: Examples per batch, if `x` is arrays.
        max_batches: Largest number of batches; None for all.
        owner: Name of the public function, for error messages.

    Raises:
        TypeError, ValueError: the data has another form, is empty, or its lengths differ.
    """

    def __init__(
        self, x: Nested, y: Nested, *, batch_size: int, max_batches: int | None, owner: str
    ) -> None:
        self.owner = owner
        self.x, self.y = x, y
        arguments = Arguments(owner)
        self.batch_size = arguments.count("batch_size", batch_size)
        self.max_batches = arguments.count_or_none("max_batches", max_batches)
        self.is_dataset = _is_dataset(x)
        if self.is_dataset and y is not None:
            raise ValueError(
                f"{owner}: `y` must be None if `x` is a dataset, which yields its own targets. "
                f"Received: x of type {type(x).__name__} and y of type {type(y).__name__}."
            )
        if self.is_dataset and max_batches is None and self._is_endless():
            raise ValueError(
                f"{owner}: the dataset is infinite, so `max_batches` must be set. "
                "Received: max_batches=None."
            )
        if not self.is_dataset:
            self.x, self.y = _arrays(x, "x", owner), None if y is None else _arrays(y, "y", owner)
            self.count = _common_length(self.x, self.y, owner)

    def __len__(self) -> int:
        """Number of batches; 0 if unknown."""
        if not self.is_dataset:
            length = -(-self.count // self.batch_size)
        else:
            try:
                length = len(self.x)
            except TypeError:
                length = 0
        return min(length, self.max_batches) if self.max_batches else length

    def __iter__(self) -> Iterator[Batch]:
        taken = 0
        for taken, batch in enumerate(self._all(), start=1):
            yield batch
            if taken == self.max_batches:
                return
        if taken == 0:
            raise ValueError(f"{self.owner}: the dataset yields no batch. Received: {self.x!r}.")

    def _all(self) -> Iterator[Batch]:
        if not self.is_dataset:
            for start in range(0, self.count, self.batch_size):
                rows = slice(start, start + self.batch_size)
                yield Batch(_rows(self.x, rows), _rows(self.y, rows))
            return
        for element in self._elements():
            yield _as_batch(element, self.owner)

    def _elements(self) -> Iterable[Nested]:
        if isinstance(self.x, keras.utils.PyDataset):
            count = self.x.num_batches
            indices = itertools.count() if count is None else range(count)
            return (self.x[index] for index in indices)
        elements: Iterable[Nested] = iter(self.x)
        return elements

    def _is_endless(self) -> bool:
        if isinstance(self.x, keras.utils.PyDataset):
            return self.x.num_batches is None
        cardinality = getattr(self.x, "cardinality", None)
        return cardinality is not None and int(cardinality()) == -1


def _is_dataset(x: Nested) -> bool:
    if isinstance(x, list | tuple | dict) or hasattr(x, "shape") or np.isscalar(x) or x is None:
        return False
    return isinstance(x, keras.utils.PyDataset) or hasattr(x, "__iter__")


def _arrays(value: Nested, name: str, owner: str) -> Nested:
    def as_array(leaf: ArrayLike) -> ArrayLike:
        array = leaf if hasattr(leaf, "shape") and keras.ops.is_tensor(leaf) else np.asarray(leaf)
        if len(array.shape) == 0 or getattr(array.dtype, "kind", "") == "O":
            raise TypeError(
                f"{owner}: `{name}` must be an array whose first axis counts the examples, such "
                f"arrays in a list or dictionary, or a dataset. Received: {name}={leaf!r}."
            )
        return array

    if isinstance(value, dict | tuple) or (isinstance(value, list) and _holds_arrays(value)):
        return keras.tree.map_structure(as_array, value)
    return as_array(value)


def _holds_arrays(values: list[Nested]) -> bool:
    """Whether a list contains several inputs, rather than the numbers of one."""
    return bool(values) and all(hasattr(v, "shape") or isinstance(v, dict) for v in values)


def _common_length(x: Nested, y: Nested, owner: str) -> int:
    lengths = [int(leaf.shape[0]) for leaf in keras.tree.flatten((x, [] if y is None else y))]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(
            f"{owner}: all arrays of `x` and `y` must have the same number of examples, at least "
            f"one. Received: lengths {lengths}."
        )
    return lengths[0]


def _rows(value: Nested, rows: slice) -> Nested:
    return None if value is None else keras.tree.map_structure(lambda leaf: leaf[rows], value)


def _as_batch(element: Nested, owner: str) -> Batch:
    parts = element if isinstance(element, tuple | list) else (element,)
    if isinstance(element, list) and len(element) > 3:
        parts = (element,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"{owner}: a dataset must yield x, (x, y) or (x, y, sample_weight). "
            f"Received: a tuple of {len(parts)}."
        )
    return Batch(*(_plain(part) for part in parts))


def _plain(part: Nested) -> Nested:
    """Replaces tensors of other libraries, which a data loader may yield, by NumPy arrays."""

    def plain(leaf: ArrayLike) -> ArrayLike:
        if leaf is None or isinstance(leaf, np.ndarray) or keras.ops.is_tensor(leaf):
            return leaf
        if hasattr(leaf, "detach"):
            leaf = leaf.detach().cpu()
        return np.asarray(leaf)

    return None if part is None else keras.tree.map_structure(plain, part)
