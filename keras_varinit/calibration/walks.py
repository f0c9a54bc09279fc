"""Walks: how all layers are calibrated at once, on data that comes in batches.

One walk runs the model over all data, batch by batch, and measures the second moment of every
pre-activation. On the first batch a walk may correct on its way: where a pre-activation is off, the
kernel is scaled, and what follows is computed from the scaled output, so that the layers behind it
see what they will see. So one walk corrects all layers, from the first to the last. The first batch
stands for all data, from which it differs as it did in the walk before. Where the layers before are
positively homogeneous (ReLU, no bias), that difference does not depend on the scales, and one
correction is exact; otherwise the walks converge fast. A call takes three walks as a rule: one to
measure, one to correct, one that finds nothing more to correct.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.apply.transaction import Change
from keras_varinit.calibration.places import Place, Places
from keras_varinit.calibration.scaling import Extrapolation, Scaling, rescaled, scaling_of
from keras_varinit.diagnostics.measure import Meter, agree, tensors, with_progress
from keras_varinit.running.batches import Batch, Batches
from keras_varinit.running.calls import call_model, untouched
from keras_varinit.running.gradients import no_gradients
from keras_varinit.running.points import Point
from keras_varinit.running.runner import LayerRunner, Runner


class _Sums:
    """What was measured over batches, by the name of the call."""

    def __init__(self) -> None:
        self.known: dict[str, Scaling] = {}

    def add(self, name: str, measured: Scaling) -> None:
        self.known[name] = measured.plus(self.known.get(name))

    def add_all(self, other: "_Sums") -> None:
        for name, measured in other.known.items():
            self.add(name, measured)


class Calibration:
    """Scales on the side: in its scopes variables have other values, and nowhere else."""

    def __init__(
        self,
        meter: Meter,
        runner: Runner,
        places: Places,
        batches: Batches,
        verbose: Any,
        target: float,
        tolerance: float,
    ) -> None:
        self.model, self.meter = meter.model, meter
        self.runner, self.places, self.batches = runner, places, batches
        self.verbose, self.target, self.tolerance = verbose, target, tolerance
        self.values = {id(variable): variable.value for variable in self.model.variables}
        self.scaled: dict[int, tuple[Any, Any]] = {}
        self.reference: Batch | None = None
        self.outputs: list[Any] = []
        self.corrected = 0
        self.walks = self.examples = 0

    def solve(self, max_iterations: int) -> None:
        """Walks until nothing is to be corrected, or the limit is reached."""
        self.walk(correcting=False)
        for _ in range(max_iterations):
            if not self.corrected and self.is_done():
                return
            self.walk(correcting=True)
        if self.corrected:
            self.walk(correcting=False)

    def is_done(self) -> bool:
        """Whether the last walk found every second moment right that can be."""
        return all(
            place.failure is not None or place.is_within(self.target, self.tolerance)
            for place in self.places.active
        )

    def walk(self, *, correcting: bool) -> None:
        """Runs the model over all data, correcting scales on the first batch."""
        self.walks += 1
        self.corrected = self.examples = 0
        everything, first = _Sums(), _Sums()
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
            if place.name in everything.known:
                measured = everything.known[place.name]
                place.moments.append(measured.moment)
                place.beyond = Extrapolation.between(first.known[place.name], measured)

    def agrees(self) -> bool:
        """Whether the model itself computes what the last walk did, with the new kernels."""
        if isinstance(self.runner, LayerRunner) or not self.scaled or self.reference is None:
            return True
        with self._scope():
            outputs = call_model(self.model, tensors(self.reference.x), self.meter.training)
            wanted = [t for t in keras.tree.flatten(outputs) if t is not None]
            return agree(_arrays(self.outputs), _arrays(wanted))

    def changes(self) -> list[Change]:
        """The kernels that are to change."""
        for variable, value in self.scaled.values():
            if not bool(keras.ops.all(keras.ops.isfinite(value))):
                raise ValueError(
                    f"{self.meter.owner}: {variable.path!r} cannot be scaled in dtype "
                    f"{variable.dtype}: its values would not be finite. No weight was changed; use "
                    "a wider dtype."
                )
        return [
            Change(variable, value, None, None, None) for variable, value in self.scaled.values()
        ]

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        """Variables have the values that they are to have."""
        with untouched(self.model), no_gradients():
            for variable, value in self.scaled.values():
                keras_private.assign(variable, value)
            yield

    def _run(self, batch: Batch, sums: _Sums, correcting: bool) -> None:
        recorder = _Recorder(self, sums, correcting)
        with self._scope():
            outputs = self.runner.run(batch.x, recorder)
        if batch is self.reference:
            self.outputs = outputs

    def correct(self, place: Place, measured: Scaling) -> float:
        """Corrects a place; in this scope its kernels are scaled at once."""
        factor = place.correct(
            measured, self.target, self.tolerance, is_comparable=self.corrected == 0
        )
        if factor != 1.0:
            self.corrected += 1
            for variable in place.kernels:
                self._scale(variable, place.kernel_scale)
        return factor

    def _scale(self, variable: Any, scale: float) -> None:
        ops = keras.ops
        if scale == 1.0:
            self.scaled.pop(id(variable), None)
            keras_private.assign(variable, ops.convert_to_tensor(self.values[id(variable)]))
            return
        wide = keras.backend.result_type(variable.dtype, "float32")
        value = ops.cast(ops.cast(self.values[id(variable)], wide) * scale, variable.dtype)
        self.scaled[id(variable)] = (variable, value)
        keras_private.assign(variable, value)

    def check_signal(self, place: Place, measured: Scaling) -> None:
        """Raises where a signal that was to be scaled is not finite."""
        if not measured.is_finite and place.skipped is None:
            path, layer = place.row_names[0]
            raise ValueError(
                f"{self.meter.owner}: layer {layer!r} ({path}) puts out values that are not "
                "finite, with the layers before it calibrated. No weight was changed; look at its "
                "weights, and at the data."
            )

    def _check_finite(self, batch: Batch) -> None:
        for leaf in keras.tree.flatten(batch.x):
            values = np.asarray(keras.ops.convert_to_numpy(leaf))
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(
                    f"{self.meter.owner}: `x` must be finite. Received: a batch of shape "
                    f"{values.shape} with {np.sum(~np.isfinite(values))} entries that are not."
                )


class _Recorder:
    """What is measured, and scaled, in one run."""

    def __init__(self, calibration: Calibration, sums: _Sums, correcting: bool) -> None:
        self.calibration, self.sums, self.correcting = calibration, sums, correcting

    def signal(self, point: Point, tensor: Any) -> Any:
        """Measures a pre-activation, and scales it with its kernel."""
        calibration = self.calibration
        place = calibration.places.at(point)
        if place is None:
            return tensor
        measured = scaling_of(tensor, place.constant)
        if calibration.walks > 1:
            calibration.check_signal(place, measured)
        if self.correcting and place.skipped is None:
            factor = calibration.correct(place, measured)
            if factor != 1.0:
                tensor = rescaled(tensor, place.constant, factor)
                measured = measured.at(factor)
        self.sums.add(point.name, measured)
        return tensor

    def activation(self, point: Point, before: Any, after: Any) -> None:
        """Nothing is taken note of."""


def _equal(batch: Batch, other: Batch) -> bool:
    if batch.x is other.x:
        return True
    pairs = zip(keras.tree.flatten(batch.x), keras.tree.flatten(other.x), strict=True)
    return all(np.array_equal(*_arrays(pair)) for pair in pairs)


def _arrays(values: Any) -> list[Any]:
    return [np.asarray(keras.ops.convert_to_numpy(value)) for value in values]
