"""Masks of attention: which keys each query attends to."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.maths.patterns import Booleans, Pattern, banded
from keras_varinit.signals.outcome import Visit
from keras_varinit.tracing.arguments import Input

FROM_DATA = "masks made from data let everything through: data count as without padding"

_OF_KEYS = ("value_mask", "key_mask")

_OF_PAIRS = ("attention_mask", "mask")


class UnknownError(Exception):
    """The effect of an attention is unknown; the message says why."""


def sight(
    visit: Visit,
    arguments: Mapping[str, Any],
    rows: int | None,
    keys: int | None,
    *,
    causal: bool,
    window: int | None = None,
) -> Pattern:
    """The pattern of keys that each query attends to, from the masks of a call.

    A mask of queries is ignored: masked rows of the output count like all others.

    Args:
        visit: The call.
        arguments: Masks by name; those of keys are (batch, keys), others (..., queries, keys).
        rows: Number of queries, None if unknown.
        keys: Number of keys, None if unknown.
        causal: Whether the attention is causal.
        window: Width of a sliding window.

    Raises:
        UnknownError: if the number of positions is unknown, or a mask depends on signals.
    """
    if rows is None or keys is None:
        raise UnknownError("it attends to an unknown number of positions")
    pattern = banded(rows, keys, causal=causal, window=window)
    for name in (*_OF_KEYS, *_OF_PAIRS):
        values = mask_values(visit, arguments.get(name))
        if values is not None and not np.all(values):
            pattern = pattern.restricted(_as_rows(values, rows, keys, name in _OF_KEYS))
    return pattern


def mask_values(visit: Visit, mask: Any) -> Booleans | None:
    """The boolean values of a mask argument; None without a mask."""
    if mask is None:
        return None
    if not isinstance(mask, Input):
        return as_booleans(keras.ops.convert_to_numpy(mask))
    known = None if visit.masks is None else visit.masks.of(visit.call.node, mask.number)
    if known is None:
        raise UnknownError("its mask is a signal, or of unknown size")
    if known.from_data:
        visit.note(FROM_DATA)
    return as_booleans(known.values)


def as_booleans(values: Any) -> Booleans:
    """Whether each entry of an array is nonzero."""
    return np.asarray(np.asarray(values) != 0, np.bool_)


def _as_rows(values: Booleans, rows: int, keys: int, of_keys: bool) -> Booleans:
    """A mask of keys, or of queries and keys, as an array (rows, keys)."""
    spread: npt.NDArray[np.bool_]
    if of_keys:
        spread = values.reshape(-1, 1, keys)
    elif values.ndim > 1 and values.shape[-2] in (1, rows) and values.shape[-1] in (1, keys):
        spread = values.reshape(-1, *values.shape[-2:])
    else:
        spread = values.reshape(-1, rows, keys)
    if not np.all(spread == spread[:1]):
        raise UnknownError("its mask differs among heads or examples")
    return np.broadcast_to(spread[0], (rows, keys))
