"""Walks: calibrating all layers in one pass over the data.

A walk runs the model over all data, batch by batch, and measures the second moment of every
pre-activation. On the first batch it may also correct: where a pre-activation is off, the kernel is
scaled, and the layers that follow are computed from the scaled output. So one walk corrects all
layers, from first to last. The first batch represents all data; the difference between them is
taken from the previous walk. Where the preceding layers are positively homogeneous (ReLU, no bias),
that difference does not depend on the scales, and one correction is exact; otherwise the walks
converge fast. Usually there are three: one measures, one corrects, and one confirms.
"""

import contextlib
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.apply.transaction import Change, known
from keras_varinit.calibration.places import Place, Places
from keras_varinit.calibration.scaling import Extrapolation, Scaling, rescaled, scaling_of
from keras_varinit.diagnostics.measure import Meter, agree, tensors, with_progress
from keras_varinit.running.batches import Batch, Batches
from keras_varinit.running.calls import call_model, untouched
from keras_varinit.running.gradients import no_gradients
from keras_varinit.running.points import Point
from keras_varinit.running.runner import LayerRunner, Runner
from keras_varinit.typing import AnyArray, ArrayLike, Tensor, Variable


class _Scalings:
    """Moments over batches, by the name of the call."""

    def __init__(self) -> None:
        self.by_call: dict[str, Scaling] = {}

    def add(self, name: str, scaling: Scaling) -> None:
        self.by_call[name] = scaling.plus(self.by_call.get(name))

    def add_all(self, other: "_Scalings") -> None:
        for name, scaling in other.by_call.items():
            self.add(name, scaling)


class Calibration:
    """Finds the scales; the model's variables have scaled values only while it runs the model."""

    def __init__(
        self,
        meter: Meter,
        runner: Runner,
        places: Places,
        batches: Batches,
        verbose: int | str,
        target: float,
        tolerance: float,
    ) -> None:
        self.model, self.meter = meter.model, meter
        self.runner, self.places, self.batches = runner, places, batches
        self.verbose, self.target, self.tolerance = verbose, target, tolerance
        self.values = {id(variable): variable.value for variable in self.model.variables}
        self.scaled: dict[int, tuple[Variable, ArrayLike]] = {}
        self.reference: Batch | None = None
        self.outputs: list[Tensor] = []
        self.corrected = 0
        self.walks = self.examples = 0

    def solve(self, max_iterations: int) -> None:
        """Walks until nothing needs correction, or the limit is reached."""
        self.walk(correcting=False)
        for _ in range(max_iterations):
            if not self.corrected and self.is_done():
                return
            self.walk(correcting=True)
        if self.corrected:
            self.walk(correcting=False)

    def is_done(self) -> bool:
        """Whether every attainable second moment was within tolerance in the last walk."""
        return all(
            place.failure is not None or place.is_within(self.target, self.tolerance)
            for place in self.places.active
        )

    def walk(self, *, correcting: bool) -> None:
        """Runs the model over all data, correcting scales on the first batch."""
        self.walks += 1
        self.corrected = self.examples = 0
        everything, first = _Scalings(), _Scalings()
        if self.reference is not None:
            self._run(self.reference, first, correcting)
        for number, batch in enumerate(with_progress(self.batches, self.verbose)):
            self.examples += batch.size
            if self.reference is None:
                self.reference = batch
                self._check_finite(batch)
                self._run(batch, first, correcting)
                everything.add_all(first)
            elif number == 0 and _equal(batch, self.reference):
                everything.add_all(first)
            else:
                self.meter.check(batch)
                self._run(batch, everything, correcting=False)
        for place in self.places:
            if place.name in everything.by_call:
                scaling = everything.by_call[place.name]
                place.moments.append(scaling.moment)
                place.beyond = Extrapolation.between(first.by_call[place.name], scaling)

    def agrees(self) -> bool:
        """Whether the model itself, with the new kernels, gives the outputs of the last walk."""
        if isinstance(self.runner, LayerRunner) or not self.scaled or self.reference is None:
            return True
        with self._scope():
            outputs = call_model(self.model, tensors(self.reference.x), self.meter.training)
            expected = [t for t in keras.tree.flatten(outputs) if t is not None]
            return agree(_arrays(self.outputs), _arrays(expected))

    def changes(self) -> list[Change]:
        """The new values of the scaled kernels."""
        for variable, value in self.scaled.values():
            if not bool(keras.ops.all(keras.ops.isfinite(value))):
                raise ValueError(
                    f"{self.meter.owner}: {variable.path!r} cannot be scaled in dtype "
                    f"{variable.dtype}: its values would not be finite. No weight was changed; use "
                    "a wider dtype."
                )
        return [
            Change(variable, known(value), None, None, None)
            for variable, value in self.scaled.values()
        ]

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        """Within the scope, kernels have their scaled values."""
        with untouched(self.model), no_gradients():
            for variable, value in self.scaled.values():
                keras_private.assign(variable, value)
            yield

    def _run(self, batch: Batch, scalings: _Scalings, correcting: bool) -> None:
        recorder = _Corrector(self, scalings, correcting)
        with self._scope():
            outputs = self.runner.run(batch.x, recorder)
        if batch is self.reference:
            self.outputs = outputs

    def correct(self, place: Place, scaling: Scaling) -> float:
        """Corrects a place and assigns its scaled kernels; returns the factor."""
        factor = place.correct(
            scaling, self.target, self.tolerance, is_comparable=self.corrected == 0
        )
        if factor != 1.0:
            self.corrected += 1
            for variable in place.kernels:
                self._scale(variable, place.kernel_scale)
        return factor

    def _scale(self, variable: Variable, scale: float) -> None:
        ops = keras.ops
        if scale == 1.0:
            self.scaled.pop(id(variable), None)
            keras_private.assign(variable, ops.convert_to_tensor(self.values[id(variable)]))
            return
        wide = keras.backend.result_type(variable.dtype, "float32")
        value = ops.cast(ops.cast(self.values[id(variable)], wide) * scale, variable.dtype)
        self.scaled[id(variable)] = (variable, value)
        keras_private.assign(variable, value)

    def check_signal(self, place: Place, scaling: Scaling) -> None:
        """Raises a ValueError if a signal to be scaled is not finite."""
        if not scaling.is_finite and place.skipped is None:
            path, layer = place.row_names[0]
            raise ValueError(
                f"{self.meter.owner}: the output of layer {layer!r} ({path}) is not finite once "
                "the layers before it are calibrated. No weight was changed; check the layer's "
                "weights and the data."
            )

    def _check_finite(self, batch: Batch) -> None:
        for leaf in keras.tree.flatten(batch.x):
            values = np.asarray(keras.ops.convert_to_numpy(leaf))
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(
                    f"{self.meter.owner}: `x` must be finite. Received: a batch of shape "
                    f"{values.shape} with {np.sum(~np.isfinite(values))} entries that are not."
                )


class _Corrector:
    """Measures, and if `correcting` scales, the pre-activations of one run."""

    def __init__(self, calibration: Calibration, scalings: _Scalings, correcting: bool) -> None:
        self.calibration, self.scalings, self.correcting = calibration, scalings, correcting

    def signal(self, point: Point, tensor: Tensor) -> Tensor:
        """Measures a pre-activation and scales it along with its kernel."""
        calibration = self.calibration
        place = calibration.places.at(point)
        if place is None:
            return tensor
        scaling = scaling_of(tensor, place.constant)
        if calibration.walks > 1:
            calibration.check_signal(place, scaling)
        if self.correcting and place.skipped is None:
            factor = calibration.correct(place, scaling)
            if factor != 1.0:
                tensor = rescaled(tensor, place.constant, factor)
                scaling = scaling.at(factor)
        self.scalings.add(point.name, scaling)
        return tensor

    def activation(self, point: Point, before: Tensor, after: Tensor) -> None:
        """Does nothing: only pre-activations are measured."""


def _equal(batch: Batch, other: Batch) -> bool:
    if batch.x is other.x:
        return True
    pairs = zip(keras.tree.flatten(batch.x), keras.tree.flatten(other.x), strict=True)
    return all(np.array_equal(a, b) for a, b in map(_arrays, pairs))


def _arrays(values: Iterable[Tensor]) -> list[AnyArray]:
    return [np.asarray(keras.ops.convert_to_numpy(value)) for value in values]
