"""The weights of a model as they would be drawn: what the signal engine needs to know of them."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.analysis.branch_shares import BranchShares
from keras_varinit.analysis.result import Reading
from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.laws import as_drawn, describe, mean_of
from keras_varinit.sharding import Index, everywhere, parts_of
from keras_varinit.tensors import moments, tensor_of, to_numpy
from keras_varinit.typing import Model, Variable


def with_signal_gains(
    model: Model,
    reading: Reading,
    schemes: Mapping[int, Any],
    kept: Collection[int] = (),
) -> Reading:
    """Sets `signal_gain` and `branch_gain` for the weights whose scheme needs them.

    Args:
        model: The model.
        reading: Its reading.
        schemes: The initializer to draw each kernel or γ with, by the `id` of its variable. Others
            count with their current initializers.
        kept: The `id` of variables in `schemes` that also count with their current initializers.
    """
    ours = {key: scheme for key, scheme in schemes.items() if _is_ours(scheme)}
    contexts = reading.by_variable | reading.vectors
    placed = {
        key: scheme.with_context(contexts[key]) for key, scheme in ours.items() if key in contexts
    }
    wanting = {key for key, scheme in placed.items() if scheme.needs_signal}
    if not wanting:
        return reading
    shares = {
        key: share
        for key in wanting - set(kept)
        for share in [placed[key].share(contexts[key])]
        if share is not None
    }
    branches = BranchShares(reading.branch_ends, shares)
    planned = _Planned(model, reading, schemes, kept, branches)
    walking = True
    while walking:
        branches.start()
        predictions, notes = reading.predict(
            planned.variance,
            backward=False,
            is_delta=planned.is_delta,
            scale_of=planned.scale_of,
            watched=branches.watched,
        )
        walking = branches.finish()
    notes += _notes(reading, wanting, predictions, shares, branches)
    reading = reading.with_gains(
        {key: each.gain for key, each in predictions.items() if key in wanting}, branches.gains
    )
    return dataclasses.replace(reading, notes=(*reading.notes, *notes))


def _notes(
    reading: Reading,
    wanting: Collection[int],
    predictions: Mapping[int, Any],
    shares: Collection[int],
    branches: BranchShares,
) -> list[str]:
    """What is not known of the signals that initializers need."""
    notes = [
        f"{context.path}: its input signal is not known, so positions and branches count as "
        "independent there"
        for key, context in reading.by_variable.items()
        if key in wanting and not (key in predictions and predictions[key].gain)
    ]
    contexts = reading.by_variable | reading.vectors
    notes += [
        f"{contexts[key].path}: what its branch adds to its stream is not known or does not depend "
        "on it, so its own output has the share"
        for key in contexts
        if key in shares and key not in branches
    ]
    if not branches.has_converged:
        notes.append("the shares of some residual branches were not met exactly")
    return notes


class _Planned:
    """Variances of the weights, drawn as planned."""

    def __init__(
        self,
        model: Model,
        reading: Reading,
        schemes: Mapping[int, Any],
        kept: Collection[int],
        branches: BranchShares,
    ) -> None:
        self.reading, self.schemes, self.kept = reading, schemes, kept
        self.branches = branches
        self.present = PresentKernels(model)

    def _plan(
        self, variable: Variable, context: LayerContext | None, gain: float
    ) -> tuple[Any, LayerContext] | None:
        """The initializer to draw a weight with, and its context; None if it is kept."""
        key = id(variable)
        scheme = self.schemes.get(key)
        if scheme is None or context is None or key in self.kept:
            return None
        known = math.isfinite(gain) and gain > 0
        fields = {"signal_gain": gain if known else None}
        if known and key in self.branches:
            fields["branch_gain"] = self.branches.gain(key, gain)
        return scheme, context.with_role(**fields)

    def variance(self, variable: Variable, gain: float) -> float:
        """The variance of a kernel's entries, NaN if the engine's assumptions do not hold."""
        plan = self._plan(variable, self.reading.context_of(variable), gain)
        if plan is None:
            return self.present.variance(variable, gain)
        scheme, context = plan
        own = scheme.with_context(context) if _is_ours(scheme) else scheme
        if mean_of(own, context.kernel_shape) or _depends_on_others(own):
            return math.nan  # the engine assumes independent kernels of mean 0
        stddev = describe(scheme, context.kernel_shape, context).stddev
        return self.present.variance(variable, gain) if stddev is None else stddev**2

    def is_delta(self, variable: Variable) -> bool:
        """Whether a kernel is drawn at its central tap alone."""
        plan = self._plan(variable, self.reading.context_of(variable), math.nan)
        if plan is None:
            return self.present.is_delta(variable)
        scheme, context = plan
        own = scheme.with_context(context) if _is_ours(scheme) else scheme
        return _is_delta(own, context.kernel_shape)

    def scale_of(self, variable: Variable) -> float | None:
        """E γ² of a normalization's scale; None if it stays as it is."""
        plan = self._plan(variable, self.reading.vector_of(variable), 1.0)
        if plan is None:
            return None
        scheme, context = plan
        own = scheme.with_context(context) if _is_ours(scheme) else scheme
        values = to_numpy(own(_shape(variable), dtype="float32"))
        return float(np.mean(np.square(np.asarray(values, np.float64))))


class PresentKernels:
    """What the current initializers of a model say about its kernels."""

    def __init__(self, model: Model) -> None:
        self.trainable = model.trainable
        self.holders = {
            key: (layer, attribute)
            for layer in [model, *keras_private.layers_of(model)]
            for key, attribute in keras_private.initializers_of(layer)
        }

    def variance(self, variable: Variable, gain: float) -> float:
        """The variance of a kernel's entries.

        It follows from the current initializer, or from the values if the initializer does not
        determine it or the kernel is frozen, and so was trained or loaded. It is NaN for kernels
        that depend on others or have a mean, as the engine assumes neither.
        """
        holder = self.holders.get(id(variable))
        if holder is not None and _depends_on_others(getattr(*holder)):
            return math.nan
        initializer, shape = self._initializer(variable), _shape(variable)
        if initializer is not None:
            if mean_of(initializer, shape):
                return math.nan
            stddev = _stddev(initializer, shape)
            if stddev is not None:
                return stddev**2
        if not keras.backend.is_float_dtype(variable.dtype):
            return math.nan
        if not keras_private.has_value(variable):
            return math.nan
        return moments(variable)[1]

    def is_delta(self, variable: Variable) -> bool:
        """Whether the current initializer draws a kernel at its central tap alone.

        The values must agree if the kernel is frozen.
        """
        holder = self.holders.get(id(variable))
        if holder is None or not _is_delta(getattr(*holder), _shape(variable)):
            return False
        if self._initializer(variable) is not None:
            return True
        axes = getattr(*holder).context.spatial_axes
        middle = {axis: (variable.shape[axis] - 1) // 2 for axis in axes}
        tensor = tensor_of(variable)
        holds = all(
            np.count_nonzero(part) == np.count_nonzero(part[_at(middle, index)])
            for index, part in parts_of(tensor).items()
        )
        return everywhere(holds, [tensor])

    def _initializer(self, variable: Variable) -> Any:
        """The initializer that draws a kernel; None if it is not known or the kernel is frozen."""
        holder = self.holders.get(id(variable))
        if holder is None and not keras_private.has_value(variable):
            pending = keras_private.pending(variable)
            return pending if isinstance(pending, keras.initializers.Initializer) else None
        if holder is None or not (self.trainable and variable.trainable):
            return None
        return as_drawn(holder[0], getattr(*holder))


def _shape(variable: Variable) -> tuple[int, ...]:
    return tuple(int(n) for n in variable.shape)


def _at(middle: Mapping[int, int], index: Index) -> tuple[slice, ...]:
    """Where a part has the central taps, given their place along some axes; empty if elsewhere."""
    bounds = [
        (middle[axis] - start, middle[axis] - start + 1) if axis in middle else (0, stop - start)
        for axis, (start, stop) in enumerate(index)
    ]
    return tuple(slice(first, last) if first >= 0 else slice(0) for first, last in bounds)


def _is_ours(initializer: Any) -> bool:
    return isinstance(initializer, ContextualInitializer)


def _is_delta(initializer: Any, shape: tuple[int, ...]) -> bool:
    return _is_ours(initializer) and bool(initializer.reads_centre_only(shape))


def _depends_on_others(initializer: Any) -> bool:
    return _is_ours(initializer) and not initializer.is_independent


def _stddev(initializer: Any, shape: tuple[int, ...]) -> float | None:
    if isinstance(initializer, ContextualInitializer):
        return initializer.stddev(shape)
    return describe(initializer, shape, None).stddev
