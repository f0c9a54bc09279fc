"""How far tokens of finite width are from having nothing in common, tensor by tensor.

Tokens x_p of n independent entries have products x_p·x_q/n of variance 1/n, relative to the squares
of what is each token's own. Every kernel of n outputs adds 1/n, so that the narrowness r of deep
stacks is about their depth over their width. Tokens that resemble each other do so in both terms
of a residual sum: what they have of it adds up like deviations, weighed by the terms' shares (an
account to first order, chosen among two by measured stacks of attention blocks). An activation
keeps of two correlations their product with the share of its variance that is linear.

It is as well Σ λ²/(Σ λ)² over the eigenvalues λ of the channels' covariance, 1/n where they have
nothing in common: what kernels make of few independent inputs differs more from unit to unit.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_varinit.analysis.moment_maps import Moments
from keras_varinit.analysis.nonlinear import law_of
from keras_varinit.analysis.reader import Node
from keras_varinit.analysis.rules import Elementwise, Role, Weights
from keras_varinit.analysis.signals import Signal
from keras_varinit.graph import operation_name

_SUMS = ("Add", "Subtract", "Average")


def of_input(signal: Signal) -> float:
    """1/n for n independent entries."""
    return 1 / max(signal.channels, 1)


def of_outputs(
    node: Node, role: Role, inputs: Sequence[Signal], before: Sequence[float], output: Signal
) -> float:
    """The narrowness of a call's outputs."""
    name, moments = operation_name(node.operation), output.parts[0][1]
    found = max(before, default=0.0)
    if isinstance(role, Weights):
        # Attention has two kernels in a row on the way of the values.
        if isinstance(node.operation, keras.layers.Embedding):
            return of_input(output)
        levels = len({kernel.level for kernel in role.kernels})
        if "Depthwise" in name or "Separable" in name:
            # Channels that were alike go through taps of their own.
            least = min((of_input(signal) for signal in inputs), default=0.0)
            found = least + max(found - least, 0.0) / math.prod(node.operation.kernel_size)
            levels -= 1
        else:
            found /= _taps(role, inputs)
        found += levels / max(output.channels, 1)
    elif name in (*_SUMS, "Multiply") and len(inputs) > 1:
        own = [_share(s.merged) if name == "Multiply" else _own(s.merged) for s in inputs]
        total = sum(own)
        if total > 0 and math.isfinite(total):
            found = sum(o / total * math.sqrt(r) for o, r in zip(own, before, strict=True)) ** 2
    elif name == "Concatenate" and output.channels == sum(s.channels for s in inputs):
        shares = [signal.channels / output.channels for signal in inputs]
        found = sum(share**2 * r for share, r in zip(shares, before, strict=True))
    if isinstance(role, Elementwise | Weights) and role.activation and moments.pre is not None:
        least = of_input(output)
        found = least + max(found - least, 0.0) * _linear_share(moments) ** 2
    return found


def beyond_independent(role: Role, signal: Signal, before: float) -> float:
    """Σ λ²/(Σ λ)² of what a kernel reads, over that of as many independent entries.

    What the kernel in front has added is left out: it takes away again what it has given.
    """
    if not isinstance(role, Weights):
        return 0.0
    return max(before - 2 * of_input(signal), 0.0) / _taps(role, [signal])


def _taps(role: Weights, inputs: Sequence[Signal]) -> float:
    """A window reads entries of several positions, which are as many more that differ."""
    channels = max((signal.channels for signal in inputs), default=1)
    return max(role.kernels[0].fans.fan_in / channels, 1.0)


def _linear_share(moments: Moments) -> float:
    """The share of a function's variance that is that of its linear part."""
    if moments.pre is None or moments.function is None or not moments.pre.is_known():
        return 1.0
    law = law_of(moments.pre, moments.function)
    variance = law.second - law.first**2
    return min(float(law.series[1]) ** 2 / variance, 1.0) if variance > 0 else 1.0


def _share(moments: Moments) -> float:
    """The share of a second moment that is not the mean's."""
    return _own(moments) / moments.second_moment if moments.second_moment > 0 else 0.0


Source = tuple[int, float]


def source_of(node: Node, role: Role, before: float, sources: Sequence[Source | None]) -> Any:
    """The tensor that the last kernel on the way read, with its narrowness; None if several did.

    Keys and values of one source resemble each other where its tokens do.
    """
    if isinstance(role, Weights):
        return (node.inputs[0], before) if node.inputs else None
    known = {source for source in sources if source is not None}
    return known.pop() if len(known) == 1 else None


def shared_width(one: Source | None, other: Source | None) -> float:
    """1/r where both were made of one source of narrowness r; infinite where they were not."""
    return 1 / max(one[1], 1e-12) if one is not None and one == other else math.inf


def _own(moments: Moments) -> float:
    return max(moments.second_moment - moments.pair_moment, 0.0)
