"""How far tokens of finite width are from having nothing in common, tensor by tensor.

Tokens x_p of n independent entries have products x_p·x_q/n of variance 1/n, relative to the squares
of what is each token's own. Every kernel of n outputs adds 1/n, so that the narrowness r of deep
stacks is about their depth over their width. Tokens that resemble each other do so in both terms
of a residual sum: what they have of it adds up like deviations, weighed by the terms' shares (an
account to first order, chosen among two by measured stacks of attention blocks).
"""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_varinit.analysis.moment_maps import Moments
from keras_varinit.analysis.reader import Node
from keras_varinit.analysis.rules import Role, Weights
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
    if isinstance(role, Weights):
        # Attention has two kernels in a row on the way of the values.
        if isinstance(node.operation, keras.layers.Embedding):
            return of_input(output)
        levels = len({kernel.level for kernel in role.kernels})
        # A window reads entries of several positions, which are as many more that differ.
        channels = max((signal.channels for signal in inputs), default=1)
        taps = max(role.kernels[0].fans.fan_in / channels, 1.0)
        return max(before, default=0.0) / taps + levels / max(output.channels, 1)
    if operation_name(node.operation) in _SUMS and len(inputs) > 1:
        own = [_own(signal.merged) for signal in inputs]
        total = sum(own)
        if total > 0 and math.isfinite(total):
            return sum(o / total * math.sqrt(r) for o, r in zip(own, before, strict=True)) ** 2
    return max(before, default=0.0)


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
