"""Shared by all layers with kernels: moments of their outputs u, and gradients through kernels.

Kernels are independent and have mean 0, so E u_p u_q = Var(w)·Σ E z z over the taps that p and q
share, and gradients pass back through the same sums.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from keras_varinit.families.activations import activation_of, acts_on_rows, after_activation
from keras_varinit.families.attention.softmax import as_activation
from keras_varinit.keras_private import layers_of, own_variable
from keras_varinit.maths.covariance import Moments, uniform
from keras_varinit.maths.scatter import scattered
from keras_varinit.maths.windows import Window, reads_in_place
from keras_varinit.signals import roles
from keras_varinit.signals.constants import moments_of_variable
from keras_varinit.signals.curvature import with_own
from keras_varinit.signals.gradient_maps import through_taps
from keras_varinit.signals.layouts import back_to
from keras_varinit.signals.narrowness import beyond_independent
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
from keras_varinit.signals.registry import RoleRule, role_rule
from keras_varinit.signals.roles import Call, Kernel, LeftAlone, Role, Unknown, Weights
from keras_varinit.signals.taps import at_centre, mean_inverse, summed_back
from keras_varinit.typing import Layer, Variable


def weights_of(call: Call, *kernels: Kernel) -> Role:
    """The role of a layer with these kernels and its own `activation=`."""
    return Weights(kernels, activation_of(getattr(call.operation, "activation", None)))


class _NoKernelError(Exception):
    """The layer has no variable with the name of Keras's kernel."""


def kernel_of(layer: Layer, name: str = "kernel") -> tuple[Variable, tuple[int, ...]]:
    """A layer's own variable with the given name, and its shape."""
    variable = own_variable(layer, name)
    if variable is None:
        raise _NoKernelError(f"it has no variable named {name!r}")
    return variable, tuple(int(n) for n in variable.shape)


def weight_rule(*kinds: type | str) -> Callable[[RoleRule], RoleRule]:
    """`role_rule` for layers with kernels.

    The role is `LeftAlone` for quantized layers and for LoRA, and `Unknown` without the kernel.
    """

    def decorate(function: RoleRule) -> RoleRule:
        def guarded(call: Call) -> Role:
            reasons = map(_reason_to_leave_alone, [call.operation, *layers_of(call.operation)])
            reason = next(filter(None, reasons), None)
            if reason is not None:
                return LeftAlone(reason)
            try:
                return function(call)
            except _NoKernelError as missing:
                return Unknown(str(missing))

        return role_rule(*kinds)(guarded)

    return decorate


def _reason_to_leave_alone(layer: Layer) -> str | None:
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled, so it is left alone"
    if layer.quantization_mode is not None:
        return f"quantized ({layer.quantization_mode}), so it is left alone"
    return None


class Weighing:
    """One kernel applied to a signal: its variance and its output, recorded with the visit."""

    def __init__(self, visit: Visit, kernel: roles.Kernel, unit: Sequence[tuple[int, Moments]]):
        """`unit` is the output by groups of channels for a kernel of variance 1."""
        self.visit, self.kernel = visit, kernel
        self.unit = unit
        gain = sum(n * m.second_moment for n, m in unit) / sum(n for n, _ in unit)
        self.variance = visit.variance_of(kernel.variable, gain)

    def output(self, bias: tuple[float, float], channel_axis: int) -> Signal:
        """Returns the kernel's output signal and records its second moment.

        `bias` is the (mean, mean square) of the bias, which is included.
        """
        parts = tuple((n, m.scaled(self.variance).shifted(bias)) for n, m in self.unit)
        self.unit = ()  # as large as the output, and no longer needed
        signal = Signal(parts, channel_axis)
        self.visit.forward(self.kernel.variable, signal.second_moment)
        return signal

    def came_back(self, gradient: Gradient | None, output: Signal) -> None:
        """Records the second moment of the gradient at the kernel's output."""
        if gradient is not None:
            second = gradient.second_moment(output) * gradient.here
            self.visit.backward(self.kernel.variable, second)


def with_activation(visit: Visit, linear: Outcome) -> Outcome:
    """Applies the layer's own activation after its kernel."""
    role = visit.role
    if not isinstance(role, Weights) or role.activation is None:
        return linear
    if acts_on_rows(role.activation) and not visit.at_output:
        after = as_activation(visit, linear.outputs, role.activation.name)
    else:
        after = after_activation(linear.outputs[0], role.activation)

    def pullback(gradients: Gradients) -> Gradients:
        return linear.pullback(after.pullback(gradients))

    return Outcome(after.outputs, pullback)


def taps_read(visit: Visit, kernel: Kernel, taps: list[Window]) -> tuple[list[Window], float]:
    """The windows that a kernel reads, and the factor from its variance to that of their taps.

    All the variance of a delta kernel is in its central tap.
    """
    if not visit.is_delta(kernel.variable):
        return taps, 1.0
    return [at_centre(window) for window in taps], float(math.prod(w.taps for w in taps))


def shared_kernel(
    visit: Visit,
    signal: Signal,
    merged: Moments,
    taps: list[Window],
    fan_in: int,
    channels: int,
    groups: int,
) -> Outcome:
    """A kernel whose output channels each sum `fan_in` input channels over the taps.

    Args:
        visit: The call.
        signal: The input, in the layout that the layer expects.
        merged: Its moments, averaged over all channels.
        taps: The kernel's window along each position axis.
        fan_in: Number of input channels that an output channel reads.
        channels: Number of output channels.
        groups: Number of groups of channels.
    """
    role = visit.role
    if not isinstance(role, Weights):
        raise TypeError("the rule expects a call whose role is `Weights`")
    taps, share = taps_read(visit, role.kernels[0], taps)
    unit = scattered(merged.weighted(taps, fan_in), merged, taps, fan_in).scaled(share)
    weighing = Weighing(visit, role.kernels[0], [(channels, unit)])
    output = weighing.output(moments_of_variable(visit.operation, "bias"), signal.channel_axis)
    inverse = mean_inverse(merged, taps, fan_in)
    # E wᵀw/wᵀCw of kernels w that read channels of covariance C, to second order.
    unequal = 2 * beyond_independent(role, signal, max(visit.narrowness, default=0.0), groups)
    output = output.each(lambda m: dataclasses.replace(m, inverse=inverse, unequal=unequal))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        weighing.came_back(gradient, output)
        if gradient is None:
            return only_first(None, len(visit.inputs))
        back = summed_back(taps, merged, gradient.parts[0])
        back = back * (weighing.variance * share * channels / groups)
        count = len(signal.parts)
        passed = through_taps(gradient, taps).with_parts((back,) * count)
        if all(map(reads_in_place, taps)):
            passed = dataclasses.replace(passed, radial=gradient.radial)
        passed = with_own(passed, gradient, taps, merged, fan_in)
        return only_first(
            back_to(passed, signal, visit.inputs[0], len(visit.call.input_shapes[0])),
            len(visit.inputs),
        )

    return with_activation(visit, Outcome((output,), pullback))


def general_kernels(visit: Visit) -> Outcome:
    """Kernels for which only the fans are known: moments of the input, averaged over positions.

    With recurrent or several kernels, the output of the layer is unknown.
    """
    role, signal = visit.role, visit.inputs[0]
    if not isinstance(role, Weights):
        raise TypeError("the rule expects a call whose role is `Weights`")
    merged = signal.merged
    kernel = next(k for k in role.kernels if not k.reads_own_output)
    recurrent = any(k.reads_own_output for k in role.kernels)
    fan_in, fan_out = kernel.fans.fan_in, kernel.fans.fan_out
    axes, channels = layout(visit.output_shape, signal.channel_axis)
    unit = uniform(
        axes,
        0.0,
        fan_in * merged.second_moment,
        fan_in * merged.pair_moment,
    )
    weighing = Weighing(visit, kernel, [(channels, unit)])
    output = weighing.output(moments_of_variable(visit.operation, "bias"), signal.channel_axis)
    if recurrent or len(role.kernels) > 1:
        visit.note(f"{visit.operation.name}: the combination of its kernels is not modelled")
        unknown = alike(visit.output_shape, signal.channel_axis, math.nan, math.nan, math.nan)
        return Outcome(
            (unknown,) * len(visit.call.output_shapes), lambda _: [None] * len(visit.inputs)
        )

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        weighing.came_back(gradient, output)
        if gradient is None:
            return [None] * len(visit.inputs)
        second = gradient.second_moment(output) * weighing.variance * fan_out
        parts = tuple(np.full_like(m.mean, second) for _, m in signal.parts)
        return only_first(gradient.with_parts(parts), len(visit.inputs))

    return with_activation(visit, Outcome((output,), pullback))
