"""Linear layers: Dense, EinsumDense, and `ops.matmul`, `dot`, `tensordot`, `einsum` with a kernel.

Dimensions of the output that only the kernel has are channels. Dimensions shared by kernel, data
and output, such as heads, each have a kernel of their own. A known matrix that is not a kernel
acts by its values: E u² = Σ w² Var z + (Σ w)² (E z)².
"""

import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_varinit.families.kernels import (
    Weighing,
    kernel_of,
    shared_kernel,
    weight_rule,
    weights_of,
    with_activation,
)
from keras_varinit.keras_private import is_variable
from keras_varinit.maths import fans
from keras_varinit.maths.fans import subscripts
from keras_varinit.maths.windows import windows_in_place
from keras_varinit.signals.constants import moments_of_variable
from keras_varinit.signals.layouts import (
    back_to,
    in_layout,
    reordered,
    signal_at,
    with_channel_axes,
)
from keras_varinit.signals.outcome import Gradients, Outcome, Visit, only_first, unknown
from keras_varinit.signals.registry import follows_channel_axes, role_rule, signal_rule
from keras_varinit.signals.roles import Call, Kernel, Merge, Role, Unknown, Weights
from keras_varinit.tracing.reader import call_argument


@weight_rule(keras.layers.Dense)
def _dense_role(call: Call) -> Role:
    variable, shape = kernel_of(call.operation)
    places = call.input_shapes[0][1:-1]
    positions = math.prod(n for n in places if n is not None) if None not in places else None
    return weights_of(call, Kernel(variable, fans.dense(shape, positions)))


@weight_rule(keras.layers.EinsumDense)
def _einsum_dense_role(call: Call) -> Role:
    variable, shape = kernel_of(call.operation)
    counts = fans.einsum(call.operation.equation, shape, call.input_shapes[0])
    return weights_of(call, Kernel(variable, counts))


@role_rule("Matmul", "Dot")
def _matmul_role(call: Call) -> Role:
    """`x @ W` with a variable W is a dense layer; a product of two signals is a merge."""
    variable = call_argument(call.node, 1, "x2")
    if not is_variable(variable) or len(variable.shape) != 2:
        return _product_without_kernel(call)
    return Weights((Kernel(variable, fans.dense(tuple(variable.shape))),))


@role_rule("Tensordot")
def _tensordot_role(call: Call) -> Role:
    variable, axes = call_argument(call.node, 1, "x2"), call.operation.axes
    if not is_variable(variable):
        return _product_without_kernel(call)
    rank = len(variable.shape)
    summed = range(axes) if isinstance(axes, int) else np.atleast_1d(axes[1])
    inside = {int(axis) % rank for axis in summed}
    kernel = "abcdefgh"[:rank]
    data = "".join(kernel[axis] for axis in sorted(inside))
    equation = f"...{data},{kernel}->..." + "".join(k for k in kernel if k not in data)
    return Weights((Kernel(variable, fans.einsum(equation, tuple(variable.shape))),))


@role_rule("Einsum")
def _einsum_role(call: Call) -> Role:
    operands, inputs = call.node.arguments.args, call.input_shapes
    variable = next((operand for operand in operands if is_variable(operand)), None)
    if len(operands) != 2 or len(inputs) != 1 or variable is None:
        return _product_without_kernel(call)
    shape, first = tuple(variable.shape), variable is operands[0]
    counts = fans.einsum(call.operation.subscripts, shape, inputs[0], kernel_first=first)
    return Weights((Kernel(variable, counts),))


def _product_without_kernel(call: Call) -> Role:
    return Merge() if len(call.node.inputs) > 1 else Unknown("a product with constants")


@signal_rule(keras.layers.Dense)
def _dense(visit: Visit) -> Outcome:
    signal = in_layout(visit, -1)
    channels = visit.output_shape[-1] or 1
    return shared_kernel(
        visit, signal, signal.merged, windows_in_place(signal.axes), signal.channels, channels, 1
    )


def labels_of(equation: str, rank: int) -> tuple[list[str], list[str], list[str]]:
    """The labels of data, kernel and output in an einsum equation, with ellipses expanded.

    `rank` is the rank of the data.
    """
    operands, output = equation.replace(" ", "").split("->")
    data, kernel = operands.split(",")
    hidden = [f"#{n}" for n in range(rank - len(data.replace("...", "")))]

    def spelled(labels: str) -> list[str]:
        before, dots, after = labels.partition("...")
        return [*before, *(hidden if dots else []), *after]

    return spelled(data), spelled(kernel), spelled(output)


@follows_channel_axes
@signal_rule(keras.layers.EinsumDense)
def _einsum_dense(visit: Visit) -> Outcome:
    data, kernel, output = labels_of(visit.operation.equation, len(visit.call.input_shapes[0]))
    return contracted(visit, data, kernel, output)


def contracted(
    visit: Visit, data: Sequence[str], kernel: Sequence[str], output: Sequence[str]
) -> Outcome:
    """A contraction with a kernel; dimensions that only the kernel has are the new channels.

    Args:
        visit: The call; its role is `Weights`.
        data: A label for each dimension of the input.
        kernel: A label for each dimension of the kernel.
        output: A label for each dimension of the output.
    """
    role, shape = visit.role, visit.call.input_shapes[0]
    if not isinstance(role, Weights):
        raise TypeError("the rule expects a call whose role is `Weights`")
    summed = [a for a, label in enumerate(data) if label in kernel and label not in output]
    shared = [label for label in data if label in kernel and label in output]
    lost = [label for label in data if label not in kernel and label not in output]
    if 0 in summed or not summed or lost or output[0] != data[0] or data[0] in kernel:
        return unknown(visit, "it sums over the batch or over what its kernel lacks")
    signal = with_channel_axes(visit.inputs[0], shape, summed + [data.index(s) for s in shared])
    channels = [a for a, label in enumerate(output) if label in kernel]
    order = [label for label in data if label not in kernel][1:]
    places = [label for label in output if label not in kernel][1:]
    count = math.prod(visit.output_shape[a] or 1 for a in channels)
    merged = reordered(signal.merged, [order.index(label) for label in places])
    fan_in = math.prod(shape[a] or 1 for a in summed)
    unit = merged.weighted(windows_in_place(merged.axes), fan_in)
    weighing = Weighing(visit, role.kernels[0], [(count, unit)])
    bias = moments_of_variable(visit.operation, "bias")
    after = signal_at(weighing.output(bias, -1).parts, channels, len(output))
    fan_out = count / math.prod(shape[data.index(s)] or 1 for s in shared)

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        weighing.came_back(gradient, after)
        if gradient is None:
            return only_first(None, len(visit.inputs))
        back = gradient.parts[0] * (weighing.variance * fan_out)
        back = back.transpose([places.index(label) for label in order])
        passed = gradient.with_parts((back,) * len(signal.parts))
        return only_first(
            back_to(passed, signal, visit.inputs[0], len(visit.call.input_shapes[0])),
            len(visit.inputs),
        )

    return with_activation(visit, Outcome((after,), pullback))


@follows_channel_axes
@signal_rule("Dot", "Tensordot")
def _raw_product(visit: Visit) -> Outcome:
    """`ops.dot` or `ops.tensordot` with a kernel; other products are unknown."""
    if isinstance(visit.role, Weights):
        return raw_kernels(visit)
    return unknown(visit, "a product without a kernel is not modelled")


def raw_kernels(visit: Visit) -> Outcome:
    """`ops.matmul`, `dot`, `tensordot` or `einsum` with a variable that is a kernel."""
    name, shape = type(visit.operation).__name__, visit.call.input_shapes[0]
    labels = [f"#{n}" for n in range(len(shape))]
    if name == "Matmul" or name == "Dot":
        return contracted(visit, labels, [labels[-1], "new"], [*labels[:-1], "new"])
    if name == "Tensordot":
        return _tensordot(visit, labels)
    if name == "Einsum":
        return _einsum(visit)
    return unknown(visit, "its kernel is used in a way that is not modelled")


def _einsum(visit: Visit) -> Outcome:
    role, shape = visit.role, visit.call.input_shapes[0]
    if not isinstance(role, Weights):
        raise TypeError("the rule expects a call whose role is `Weights`")
    own = tuple(role.kernels[0].variable.shape)
    first = is_variable(visit.call.node.arguments.args[0])
    (data, kernel), output = subscripts(visit.operation.subscripts, (shape, own), first)
    sizes = dict(zip(kernel, own, strict=True))
    broadcast = any(sizes.get(k, n) != n for k, n in zip(data, shape, strict=True))
    repeats = any(len(set(labels)) < len(labels) for labels in (data, kernel))
    if broadcast or repeats or not {*kernel} <= {*data, *output}:
        return unknown(visit, "it takes a diagonal, is broadcast, or sums over its kernel alone")
    return contracted(visit, data, kernel, output)


def _tensordot(visit: Visit, labels: list[str]) -> Outcome:
    variable, axes = call_argument(visit.call.node, 1, "x2"), visit.operation.axes
    rank, own = len(labels), len(variable.shape)
    if isinstance(axes, int):
        pairs = list(zip(range(rank - axes, rank), range(axes), strict=True))
    else:
        pairs = list(zip(np.atleast_1d(axes[0]), np.atleast_1d(axes[1]), strict=True))
    kernel = [f"new{n}" for n in range(own)]
    for one, other in pairs:
        kernel[int(other) % own] = labels[int(one) % rank]
    output = [x for x in labels if x not in kernel] + [x for x in kernel if x not in labels]
    return contracted(visit, labels, kernel, output)
