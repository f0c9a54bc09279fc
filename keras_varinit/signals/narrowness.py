"""Narrowness: the residual similarity of tokens of finite width, for each tensor.

For tokens x_p of n independent entries, the products x_p·x_q/n have variance 1/n relative to the
squared norms of the tokens' own parts. Each kernel of n outputs adds 1/n, so the narrowness r of a
deep stack is about its depth over its width. In a residual sum, similarities of both terms add up
like standard deviations, weighted by the terms' shares (a first-order account, chosen between two
by comparison with measured stacks of attention blocks). An activation multiplies a correlation by
the linear share of its variance.

r is also Σ λ²/(Σ λ)² over the eigenvalues λ of the channels' covariance, 1/n for uncorrelated
channels: outputs of kernels that read few independent inputs vary more from unit to unit.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_varinit.keras_private import operation_name
from keras_varinit.maths.activated import law_of
from keras_varinit.maths.covariance import Moments
from keras_varinit.signals.outcome import Signal
from keras_varinit.signals.roles import Elementwise, Role, Weights
from keras_varinit.tracing.reader import Node

_SUMS = ("Add", "Subtract", "Average")
_JOINING = ("ExtractPatches", "Flatten", "Ravel", "Reshape", "SpaceToDepth")
_PRODUCTS = ("Multiply", "Divide", "TrueDivide", "DivideNoNan")


def of_input(signal: Signal) -> float:
    """1/n for n independent channels."""
    return 1 / max(signal.channels, 1)


def of_outputs(
    node: Node, role: Role, inputs: Sequence[Signal], before: Sequence[float], output: Signal
) -> float:
    """The narrowness of a call's outputs."""
    name, moments = operation_name(node.operation), output.parts[0][1]
    wide = [r for s, r in zip(inputs, before, strict=True) if s.channels == output.channels]
    # A single channel, as of a mask, makes the channels that it meets no fewer.
    narrow = max((not isinstance(role, Weights) and wide) or before, default=0.0)
    if isinstance(role, Weights):
        # Values pass two kernels of an attention layer in a row, hence levels.
        if isinstance(node.operation, keras.layers.Embedding):
            return of_input(output)
        levels = len({kernel.level for kernel in role.kernels})
        groups = _groups_of(node, inputs)
        if "Separable" in name or groups > 1:
            # Channels of different groups pass through different taps and have no input in common.
            least = min((of_input(signal) for signal in inputs), default=0.0)
            share = max(1 / groups - of_input(output), 0.0) if groups > 1 else 0.0
            narrow = max(narrow - least, 0.0) + share * least * groups
            narrow = narrow / _taps(role, inputs, groups) + (least if "Separable" in name else 0.0)
            levels -= "Separable" in name
        else:
            narrow /= _taps(role, inputs)
        narrow += levels / max(output.channels, 1)
    elif name in (*_SUMS, *_PRODUCTS) and len(inputs) > 1:
        own = [_own(s.merged) if name in _SUMS else _share(s.merged) for s in inputs]
        total = sum(own)
        if total > 0 and math.isfinite(total):
            narrow = sum(o / total * math.sqrt(r) for o, r in zip(own, before, strict=True)) ** 2
    elif name in _JOINING and output.channels > inputs[0].channels:
        # Entries of different positions differ, as those that the taps of a kernel read.
        narrow = max(narrow * inputs[0].channels / output.channels, of_input(output))
    elif name == "Concatenate" and output.channels == sum(s.channels for s in inputs):
        shares = [signal.channels / output.channels for signal in inputs]
        narrow = sum(share**2 * r for share, r in zip(shares, before, strict=True))
    if isinstance(role, Elementwise | Weights) and role.activation and moments.pre is not None:
        least = of_input(output)
        narrow = least + max(narrow - least, 0.0) * _linear_share(moments) ** 2
    return narrow


def beyond_independent(role: Role, signal: Signal, before: float, groups: int = 1) -> float:
    """Σ λ²/(Σ λ)² of a kernel's inputs, in excess of that of as many independent entries.

    The contribution of the preceding kernel is left out, since it cancels. An output that reads c/g
    of c channels meets the correlations of those alone, 1 - g/c of all.
    """
    if not isinstance(role, Weights):
        return 0.0
    among = 1 - groups * of_input(signal)
    return max(before - 2 * of_input(signal), 0.0) * among / _taps(role, [signal], groups)


def _groups_of(node: Node, inputs: Sequence[Signal]) -> int:
    """The number of groups of channels that a convolution keeps apart."""
    name = operation_name(node.operation)
    if "Depthwise" in name:
        return max((signal.channels for signal in inputs), default=1)
    return int(getattr(node.operation, "groups", 1) or 1)


def _taps(role: Weights, inputs: Sequence[Signal], groups: int = 1) -> float:
    """The number of positions that an output reads; their entries differ from each other."""
    channels = max((signal.channels for signal in inputs), default=1) / groups
    return max(role.kernels[0].fans.fan_in / channels, 1.0)


def _linear_share(moments: Moments) -> float:
    """The share of a function's variance that its linear part accounts for."""
    if moments.pre is None or moments.function is None or not moments.pre.is_known():
        return 1.0
    law = law_of(moments.pre, moments.function)
    variance = law.second - law.first**2
    return min(float(law.series[1]) ** 2 / variance, 1.0) if variance > 0 else 1.0


def _share(moments: Moments) -> float:
    """The share of the second moment that distant positions do not have in common."""
    return _own(moments) / moments.second_moment if moments.second_moment > 0 else 0.0


Source = tuple[int, float]


def source_of(node: Node, role: Role, before: float, sources: Sequence[Source | None]) -> Any:
    """The input of the last kernel on the path, with its narrowness; None if there are several.

    Keys and values of the same source are similar where its tokens are.
    """
    if isinstance(role, Weights):
        return (node.inputs[0], before) if node.inputs else None
    known = {source for source in sources if source is not None}
    return known.pop() if len(known) == 1 else None


def shared_width(one: Source | None, other: Source | None) -> float:
    """1/r for two tensors of the same source of narrowness r; infinite for different sources."""
    return 1 / max(one[1], 1e-12) if one is not None and one == other else math.inf


def _own(moments: Moments) -> float:
    return max(moments.second_moment - moments.pair_moment, 0.0)
