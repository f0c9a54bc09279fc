"""SimpleRNN, LSTM, GRU, RNN with their cells, and Bidirectional; ConvLSTM by its fans alone.

A pre-activation is the sum of the outputs of two kernels. The output u of a kernel is W x_t or
U h_{t-1}, without biases, over all gates and steps. The moments of the states are computed in
`maths.recurrence`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_varinit.families.attention.masks import UnknownError, mask_values
from keras_varinit.families.kernels import general_kernels
from keras_varinit.families.recurrent.cells import KINDS, NotModelledError, kind_of, numbers_of
from keras_varinit.families.recurrent.steps import (
    Clock,
    SteppedGradient,
    arriving_at,
    clock_of,
    faded,
    has_settled,
    moments_of,
    stepped,
    steps_of,
)
from keras_varinit.maths.algebra import added, multiplied
from keras_varinit.maths.covariance import Moments, uniform
from keras_varinit.maths.recurrence import ZERO, Moment, States, Steps
from keras_varinit.maths.windows import Array
from keras_varinit.signals.layouts import in_layout
from keras_varinit.signals.outcome import (
    Gradient,
    Gradients,
    Outcome,
    Signal,
    Visit,
    alike,
    layout,
    only_first,
)
from keras_varinit.signals.registry import signal_rule
from keras_varinit.signals.roles import Kernel, Weights
from keras_varinit.tracing.arguments import Input, named_arguments
from keras_varinit.typing import Layer

# Number of steps that are computed one by one. It is the same for all layers, so that gradients
# passed back by one layer are by the steps of the preceding one.
_STEPS = 48


@signal_rule(keras.layers.RNN)
def _recurrent(visit: Visit) -> Outcome:
    if not all(signal.is_known() for signal in visit.inputs[:1]):
        return _without_state(visit)
    try:
        cells = _cells(visit)
        starts = _starts(visit, cells)
        return _Layer(visit, cells, _clock(visit), starts).outcome()
    except NotModelledError as reason:
        visit.note(f"{visit.operation.name}: {reason}, so its output is not known")
        return _without_state(visit)


def _without_state(visit: Visit) -> Outcome:
    """Only the output of the first kernel, which reads the input, is known."""
    return general_kernels(dataclasses.replace(visit, note=lambda text: None))


def _clock(visit: Visit) -> Clock:
    axis = in_layout(visit, -1).axes[0]
    if axis.size is None:
        raise NotModelledError("the number of its steps is not known")
    return clock_of(axis, _STEPS, backwards=bool(visit.operation.go_backwards))


def _cells(visit: Visit) -> list[Any]:
    """The cells of a layer, if all are Keras's own.

    Raises:
        NotModelledError: if they are not, or the call has a mask or other arguments.
    """
    layer, node = visit.operation, visit.call.node
    if not isinstance(getattr(layer, "cell", None), keras.Layer):
        raise NotModelledError("its cell is not a layer")
    cells = list(getattr(layer.cell, "cells", [layer.cell]))
    for each in (layer, layer.cell, *cells):
        if not type(each).call.__module__.startswith("keras."):
            raise NotModelledError(f"{type(each).__name__} has a `call` of its own")
    if not all(any(isinstance(cell, kind[0]) for kind in KINDS) for cell in cells):
        raise NotModelledError(f"the recursion of {type(cells[0]).__name__} is not modelled")
    arguments = named_arguments(node)
    try:
        shown = mask_values(visit, arguments.get("mask"))
    except UnknownError as reason:
        raise NotModelledError(str(reason)) from reason
    if shown is not None and not np.all(shown):
        raise NotModelledError("it skips the steps that its mask hides")
    if arguments.get("sequences") != Input(0):
        raise NotModelledError("its sequence is not the first of its arguments")
    if layer.stateful:
        visit.note(f"{layer.name}: it is stateful; its initial state counts as zeros")
    return cells


def _starts(visit: Visit, cells: Sequence[Any]) -> list[list[Input]]:
    """The initial states by cell; empty lists if the layer starts from zeros."""
    initial = named_arguments(visit.call.node).get("initial_state")
    if initial is None:
        return [[] for _ in cells]
    states, by_cell = keras.tree.flatten(initial), []
    counts = [len(keras.tree.flatten(cell.state_size)) for cell in cells]
    if len(states) != sum(counts) or not all(isinstance(s, Input) for s in states):
        raise NotModelledError("its initial states are not signals, or do not match its cells")
    if not all(visit.inputs[s.number].is_known() for s in states):
        raise NotModelledError("an initial state is not known")
    for count in counts:
        by_cell.append(states[:count])
        states = states[count:]
    return by_cell


def _moment_of(signal: Signal) -> Moment:
    moments = signal.merged
    return moments.average(moments.mean), moments.second_moment, moments.pair_moment


@dataclasses.dataclass(frozen=True)
class _Run:
    """One cell over all steps: its kernels, initial states and states."""

    kernel: Kernel
    recurrent: Kernel
    variance: float
    kept: float
    gates: int
    units: int
    starts: Sequence[Input]
    states: States

    def reading(self, matrix: Array) -> Array:
        """(steps, steps): E g_t g_s at the input, from Σ over gates of E δ_t δ_s at the kernel."""
        return matrix * (self.variance * self.units / self.kept)


class _Layer:
    """One call of a recurrent layer, whose cells are applied in order."""

    def __init__(
        self,
        visit: Visit,
        cells: Sequence[Any],
        clock: Clock,
        starts: Sequence[Sequence[Input]],
    ) -> None:
        self.visit, self.clock = visit, clock
        self.layer, self.signal = visit.operation, in_layout(visit, -1)
        role = visit.role
        if not isinstance(role, Weights):
            raise TypeError("the rule expects a call whose role is `Weights`")
        steps, fan_in = steps_of(self.signal.merged, clock), self.signal.channels
        self.runs: list[_Run] = []
        for number, (cell, start) in enumerate(zip(cells, starts, strict=True)):
            kernels = role.kernels[2 * number : 2 * number + 2]
            self.runs.append(self._run(cell, kernels, start, steps, fan_in))
            steps, fan_in = self.runs[-1].states.outputs, int(cell.units)

    def _run(
        self,
        cell: Layer,
        kernels: Sequence[Kernel],
        starts: Sequence[Input],
        steps: Steps,
        fan_in: int,
    ) -> _Run:
        visit, clock = self.visit, self.clock
        kernel, recurrent = kernels
        _, gates, law = kind_of(cell)
        kept = 1 - float(cell.dropout)
        gain = fan_in * clock.average(np.diagonal(steps.own)) / kept
        variance = visit.variance_of(kernel.variable, gain)
        visit.forward(kernel.variable, variance * gain)
        # U has no gain, because the state that it reads depends on U itself.
        scale = visit.variance_of(recurrent.variable, math.nan) * int(cell.units)
        if not math.isfinite(variance + scale):
            raise NotModelledError("the variance of its kernels is not known")
        inputs = steps.scaled(variance * fan_in / kept, variance * fan_in)
        moments = [_moment_of(visit.inputs[each.number]) for each in starts]
        states = law(inputs, numbers_of(cell, gates, scale), moments or (ZERO, ZERO))
        read = clock.average(states.recurrent)
        if not math.isfinite(read + states.last[0][1]):
            raise NotModelledError("its state overflows")
        if read > 0:  # otherwise U reads only zeros
            visit.forward(recurrent.variable, read)
        if not has_settled(np.diagonal(states.outputs.own), clock):
            raise NotModelledError(f"its state does not converge in {clock.middle} steps")
        return _Run(kernel, recurrent, variance, kept, gates, int(cell.units), starts, states)

    def outcome(self) -> Outcome:
        """The outputs, with the pullback of gradients."""
        last = self.runs[-1].states
        moments = [state for run in self.runs for state in run.states.last]
        if self.layer.return_sequences:
            _, channels = layout(self.visit.output_shape, -1)
            output = Signal(((channels, moments_of(last.outputs, self.clock)),), -1)
        else:
            output = _state(self.visit.output_shape, last.last[0])
        shapes = self.visit.call.output_shapes[1:]
        states = [_state(s, m) for s, m in zip(shapes, moments, strict=False)]
        return Outcome((output, *states), self._pullback)

    def _pullback(self, gradients: Gradients) -> Gradients:
        count = len(self.clock.shares)
        arriving, last = np.zeros((count, count)), 0.0
        first = gradients[0]
        if first is not None and self.layer.return_sequences:
            arriving = arriving_at(first, self.clock)
        elif first is not None:
            last = float(first.parts[0])
        states = [0.0 if g is None else float(g.parts[0]) for g in gradients[1:]]
        if first is None and not any(states):
            return only_first(None, len(self.visit.inputs))
        kept = [len(run.states.last) for run in self.runs]
        states += [0.0] * (sum(kept) - len(states))
        ends = np.cumsum([0, *kept])
        results: list[Gradient | None] = [None] * len(self.visit.inputs)
        for number in reversed(range(len(self.runs))):
            carried = states[ends[number] : ends[number + 1]]
            carried[0] += last
            arriving, last = self._back(self.runs[number], arriving, carried, results), 0.0
        results[0] = self._at_input(arriving)
        return results

    def _back(
        self,
        run: _Run,
        arriving: Array,
        carried: Sequence[float],
        results: list[Gradient | None],
    ) -> Array:
        """Records the gradients at a cell's kernels and returns those at its input.

        Args:
            run: The cell.
            arriving: (steps, steps), E g_t g_s at its outputs.
            carried: E g² at its final states.
            results: Gradients by input of the layer; those of initial states are set.
        """
        visit, clock = self.visit, self.clock
        returned = run.states.pullback(arriving, carried)
        matrix, recurrent = returned.kernel, returned.recurrent
        if clock.is_long:
            factors = faded(np.diagonal(matrix), np.diagonal(arriving), clock)
            if np.any(np.isnan(factors)):
                visit.note(f"{self.layer.name}: gradients do not converge in {clock.middle} steps")
            matrix = matrix * np.sqrt(np.outer(factors, factors))
            recurrent = recurrent * factors
        visit.backward(run.kernel.variable, clock.average(np.diagonal(matrix)) / run.gates)
        visit.backward(run.recurrent.variable, clock.average(recurrent))
        for each, second in zip(run.starts, returned.start, strict=False):
            means = [m.mean for _, m in visit.inputs[each.number].parts]
            results[each.number] = Gradient(tuple(np.full_like(m, second) for m in means))
        return run.reading(matrix)

    def _at_input(self, matrix: Array) -> Gradient:
        seconds = np.diagonal(matrix)
        part = self.clock.by_class(seconds, self.clock.reads)
        return stepped(part, len(self.signal.parts), matrix, self.clock)


def _state(shape: Any, moments: tuple[float, float, float]) -> Signal:
    mean, second, pair = moments
    axes, channels = layout(shape, -1)
    return Signal(((channels, uniform(axes, mean, second, pair)),), -1)


@signal_rule(keras.layers.Bidirectional)
def _bidirectional(visit: Visit) -> Outcome:
    """Joins the two directions; the output of the backward layer is reversed."""
    wrapper, inputs = visit.operation, visit.inputs[:2]
    if wrapper.return_state:
        visit.note(f"{wrapper.name}: the states that it returns are not known")
    turn = _turned if wrapper.return_sequences else lambda m: m
    ahead, back = inputs[0], inputs[1].each(turn)
    mode, unknown = (
        wrapper.merge_mode,
        [alike(s, -1, math.nan, math.nan, math.nan) for s in visit.call.output_shapes],
    )
    outputs = _merged(mode, ahead, back)
    factors = _factors(mode, ahead, back)

    def pullback(gradients: Gradients) -> Gradients:
        results: list[Gradient | None] = []
        for number in range(2):
            gradient = gradients[number if mode is None else 0]
            if gradient is not None:
                parts = gradient.parts[-1:] if number and mode == "concat" else gradient.parts[:1]
                part = parts[0] * factors[number]
                if number and wrapper.return_sequences:
                    part = part[::-1]
                    if isinstance(gradient, SteppedGradient):
                        gradient = gradient.turned()
                gradient = gradient.with_parts((part,))
            results.append(gradient)
        return results

    return Outcome((*outputs, *unknown[len(outputs) :]), pullback)


def _merged(mode: str | None, ahead: Signal, back: Signal) -> list[Signal]:
    if mode is None:
        return [ahead, back]
    if mode == "concat":
        return [Signal(ahead.parts + back.parts, -1)]
    merge = multiplied if mode == "mul" else added
    share = 0.25 if mode == "ave" else 1.0
    result = merge(ahead.merged.plain(), back.merged.plain()).scaled(share)
    return [Signal(((ahead.channels, result),), -1)]


def _factors(mode: str | None, ahead: Signal, back: Signal) -> tuple[Any, Any]:
    """Factors on a gradient's second moment for the forward and the backward layer."""
    if mode == "mul":
        return back.merged.second, ahead.merged.second
    return (0.25, 0.25) if mode == "ave" else (1.0, 1.0)


def _turned(moments: Moments) -> Moments:
    """The moments of the reversed sequence."""
    mean, far, excess = map(np.flip, (moments.mean, moments.far, moments.excess))
    return Moments(moments.axes, mean, far, excess, moments.radius)
