"""The calls of layers with kernels: which kernels are scaled, and why others are not."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit import keras_private
from keras_varinit.analysis.result import Reading
from keras_varinit.calibration.report import CALIBRATED, CalibrationRow
from keras_varinit.calibration.scaling import Extrapolation, Scaling
from keras_varinit.running.points import Point
from keras_varinit.running.runner import GraphRunner, Runner
from keras_varinit.signals.roles import LeftAlone, Padding, Transparent, Weights
from keras_varinit.tensors import to_numpy
from keras_varinit.tracing.names import variable_names
from keras_varinit.typing import Layer, Model, Operation, Variable

_LIMIT = "not converged: the iteration limit was reached"


@dataclasses.dataclass(eq=False)
class Place:
    """A call of a layer with kernels, and the state of its calibration.

    Attributes:
        name: Name of the call.
        row_names: Path and layer name of each kernel.
        kernels: The kernels to scale; u is linear in each. Empty if none may be scaled.
        constant: The bias as an array that broadcasts against u, or None.
        skipped: Why it is left alone, or None.
        scale: Factor on the product of the kernels.
        beyond: How moments over all data follow from those of the first batch.
        iterations: Number of corrections.
        moments: The second moment over all data in each walk.
        failure: Why no scale gives the target, or None.
        follows: False once the second moment did not react to a correction.
        expected: The first batch's second moment before the last correction, and the one expected
            after it; None unless a correction is waiting to be checked.
    """

    name: str
    row_names: tuple[tuple[str, str], ...]
    kernels: tuple[Variable, ...] = ()
    constant: npt.NDArray[np.float32] | None = None
    skipped: str | None = None
    scale: float = 1.0
    beyond: Extrapolation = dataclasses.field(default_factory=Extrapolation)
    iterations: int = 0
    moments: list[float] = dataclasses.field(default_factory=list)
    failure: str | None = None
    follows: bool = True
    expected: tuple[float, float] | None = None

    @property
    def kernel_scale(self) -> float:
        """The factor on each kernel."""
        return float(self.scale ** (1 / max(1, len(self.kernels))))

    def is_within(self, target: float, tolerance: float) -> bool:
        """Whether the second moment over all data was within tolerance in the last walk."""
        return abs(self.moments[-1] / target - 1) <= tolerance

    def correct(
        self, first: Scaling, target: float, tolerance: float, *, is_comparable: bool
    ) -> float:
        """Corrects the scale, given the first batch's moments; returns the factor.

        `is_comparable` says that no other kernel has changed since the last correction.
        """
        if not self.follows:
            return 1.0
        self.failure = None
        expected, self.expected = self.expected, None
        if expected is not None and is_comparable and _ignores(first.moment, *expected):
            self.follows = False
            return self._fail("its output does not follow its kernel's scale")
        everything = self.beyond.of(first)
        if abs(everything.moment / target - 1) <= tolerance / 2:
            return 1.0
        if everything.linear == 0:
            return self._fail("its kernel's output is zero on this data")
        factor = everything.scale_for(target)
        if factor is None:
            return self._fail(f"its bias alone has the second moment {everything.constant:.4g}")
        self.iterations += 1
        self.scale *= factor
        self.expected = (first.moment, first.at(factor).moment)
        return factor

    def _fail(self, reason: str) -> float:
        """Resets the scale to 1; returns the factor that undoes it."""
        factor, self.scale = 1 / self.scale, 1.0
        self.failure = f"not converged: {reason}"
        return factor

    def rows(self, target: float, tolerance: float) -> list[CalibrationRow]:
        """One row for each kernel."""
        if self.skipped is not None:
            status = f"skipped: {self.skipped}"
        elif self.failure is not None:
            status = self.failure
        else:
            status = CALIBRATED if self.is_within(target, tolerance) else _LIMIT
        before, after = (self.moments[0], self.moments[-1]) if self.moments else (None, None)
        return [
            CalibrationRow(path, layer, self.kernel_scale, before, after, self.iterations, status)
            for path, layer in self.row_names
        ]


def _ignores(moment: float, before: float, expected: float) -> bool:
    """Whether a second moment hardly moved from `before` towards `expected`."""
    if not (before > 0 and moment > 0 and expected > 0):
        return False
    step = math.log(expected / before)
    return abs(step) > 0.02 and math.log(moment / before) / step < 0.1


class Places:
    """The places of a model, collected while its calls are run.

    Args:
        model: A built model.
        runner: Runs the model.
        selected: The selected layers.
        explicit: The `id` of each layer that was selected itself; some are scaled only then.
        include_frozen: Whether frozen kernels are scaled.
    """

    def __init__(
        self,
        model: Model,
        runner: Runner,
        selected: Sequence[Layer],
        explicit: set[int],
        include_frozen: bool,
    ) -> None:
        self.model, self.include_frozen = model, include_frozen
        units = [c for c in selected if id(c) in explicit and not isinstance(c, keras.Model)]
        self.explicit = {id(v) for unit in units for v in unit.weights}
        self.names = variable_names(model)
        self.selected = {id(layer) for layer in selected}
        self.owners = {
            id(variable): layer
            for layer in [model, *keras_private.layers_of(model)]
            for variable in keras_private.own_variables(layer)
        }
        self.normalized = (
            _before_normalization(runner) if isinstance(runner, GraphRunner) else set()
        )
        self.by_call: dict[str, list[Place]] = {}
        self.first_calls: dict[int, str] = {}

    def __iter__(self) -> Iterator[Place]:
        return (place for places in self.by_call.values() for place in places)

    @property
    def active(self) -> list[Place]:
        """The places whose kernels are scaled."""
        return [place for place in self if place.skipped is None]

    def at(self, point: Point) -> Place | None:
        """The place of a call whose output is the pre-activation of a kernel, or None."""
        if point.name not in self.by_call:
            self.by_call[point.name] = self._new(point)
        return next((place for place in self.by_call[point.name] if place.kernels), None)

    def covers(self, variable: Variable) -> bool:
        """Whether a kernel has a row or is not selected."""
        path = self.names[id(variable)][0]
        rows = (each for place in self for each, _ in place.row_names)
        return not self._is_chosen(variable, None) or path in rows

    def add_unseen(self, reading: Reading) -> None:
        """Adds kernels that have a context but were not used by any observed call."""
        for variable in self.model.variables:
            known = reading.context_of(variable) is not None
            if known and id(variable) in self.owners and not self.covers(variable):
                self.by_call.setdefault("", []).append(
                    self._place("", [variable], "its kernel's output was not observed")
                )

    def _new(self, point: Point) -> list[Place]:
        """The places of a call that runs for the first time, in order."""
        role = point.role
        if isinstance(role, LeftAlone):
            layers = [point.operation, *keras_private.layers_of(point.operation)]
            kernels = [v for layer in layers for v in keras_private.own_variables(layer)]
            kernels = [v for v in kernels if len(v.shape) > 1 and "lora" not in v.name]
            return self._left(point, kernels[:1], role.reason)
        if not isinstance(role, Weights):
            return []
        variables = [
            kernel.variable for kernel in role.kernels if id(kernel.variable) in self.names
        ]
        inside = any(kernel.reads_own_output for kernel in role.kernels)
        if inside or point.kernel is None:
            return self._left(point, variables, "its kernel's output stays inside the layer")
        levels = [kernel.level for kernel in role.kernels]
        in_series = len(set(levels)) == len(levels)
        outer = variables if in_series else [v for v in variables if v is point.kernel]
        others = [v for v in variables if not any(v is each for each in outer)]
        places = self._left(point, others, "it acts inside the layer, whose output is calibrated")
        if outer and self._is_chosen(outer[-1], point.operation):
            places.append(self._outer(point, outer))
        return places

    def _outer(self, point: Point, kernels: list[Variable]) -> Place:
        first = self.first_calls.setdefault(id(kernels[-1]), point.name)
        if first != point.name:
            place = self._place(
                point.name, kernels, f"shared, calibrated where {first!r} is called"
            )
            place.row_names = tuple((path, point.name) for path, _ in place.row_names)
        else:
            place = self._place(point.name, kernels, self._reason_to_skip(point, kernels))
        place.kernels, place.constant = tuple(kernels), self._constant(point, kernels[-1])
        return place

    def _reason_to_skip(self, point: Point, kernels: list[Variable]) -> str | None:
        if any(not keras.backend.is_float_dtype(v.dtype) for v in kernels):
            return f"its kernel is of type {kernels[0].dtype}"
        trainable = self.model.trainable and all(v.trainable for v in kernels)
        if not (trainable or self.include_frozen):
            return "frozen (trainable=False)"
        explicit = any(id(v) in self.explicit for v in kernels)
        if isinstance(point.operation, keras.layers.Embedding) and not explicit:
            return "an embedding, which `layers` does not name"
        if point.name in self.normalized and not explicit:
            return "the normalization after it cancels its scale"
        return None

    def _constant(self, point: Point, kernel: Variable) -> npt.NDArray[np.float32] | None:
        """The bias, if Keras's own `call` adds one that is not zero."""
        operation = point.operation
        own = getattr(type(operation).call, "__module__", "").startswith("keras.")
        if keras_private.is_raw_operation(operation) or not own:
            return None
        bias = keras_private.own_variable(self.owners[id(kernel)], "bias")
        if bias is None:
            return None
        values = to_numpy(bias).astype(np.float32)
        if not values.any():
            return None
        if getattr(operation, "data_format", None) == "channels_first" and values.ndim == 1:
            values = values.reshape(-1, *(1,) * operation.rank)
        return values

    def _left(self, point: Point, variables: list[Variable], reason: str) -> list[Place]:
        kernels = [v for v in variables if self._is_chosen(v, point.operation)]
        kernels = [v for v in kernels if id(v) not in self.first_calls]
        self.first_calls.update((id(v), point.name) for v in kernels)
        return [self._place(point.name, kernels, reason)] if kernels else []

    def _place(self, name: str, variables: list[Variable], skipped: str | None) -> Place:
        rows = tuple((path, layer) for path, layer, _ in (self.names[id(v)] for v in variables))
        return Place(name, rows, skipped=skipped)

    def _is_chosen(self, variable: Variable, operation: Operation | None) -> bool:
        return id(operation) in self.selected or id(self.owners.get(id(variable))) in self.selected


def _before_normalization(runner: GraphRunner) -> set[str]:
    """Names of the calls whose output only goes into normalization."""
    tensors, points = runner.graph, runner.points

    def is_normalized(tensor: int) -> bool:
        ahead = [points[index] for index in tensors.consumers[tensor]]
        return (
            bool(ahead)
            and tensor not in tensors.outputs
            and all(
                point is not None and leads_there(point, index)
                for point, index in zip(ahead, tensors.consumers[tensor], strict=True)
            )
        )

    def leads_there(point: Point, index: int) -> bool:
        if isinstance(point.role, Transparent) and point.role.normalizes:
            return True
        passes = isinstance(point.role, Transparent | Padding)
        return passes and is_normalized(tensors.nodes[index].outputs[0])

    return {
        point.name
        for point, node in zip(points, tensors.nodes, strict=True)
        if point is not None
        and isinstance(point.role, Weights)
        and point.function is None
        and is_normalized(node.outputs[0])
    }
