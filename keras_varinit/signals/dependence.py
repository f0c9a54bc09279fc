"""Dependence between the arguments of an operation."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_varinit.maths.covariance import Moments, Term
from keras_varinit.maths.expansions import independent
from keras_varinit.maths.quadrature import Activation
from keras_varinit.maths.together import Kept, kept_together, share_no_root
from keras_varinit.signals.broadcasting import Aligned
from keras_varinit.signals.outcome import Signal, Visit


class Dependence:
    """Which arguments of an operation share tensors or weights."""

    def __init__(self, visit: Visit, arguments: Sequence[Any], aligned: Sequence[Aligned]) -> None:
        self.visit = visit
        self.reason = ""
        self.numbers = {
            id(moments)
            for argument, one in zip(arguments, aligned, strict=True)
            if not isinstance(argument, int)
            for _, moments in one.signal.parts
        }
        self.reaches = [visit.reaches[a] if isinstance(a, int) else 0 for a in arguments]
        self.centred = [_is_centred(one.signal.merged) for one in aligned]
        self.lineages = [visit.lineages[a] if isinstance(a, int) else None for a in arguments]

    def pairs(self) -> list[tuple[int, int]]:
        """Arguments that share a tensor or weights."""
        places = range(len(self.reaches))
        return [(i, j) for i, j in itertools.combinations(places, 2) if self._share(i, j)]

    def _share(self, i: int, j: int) -> bool:
        """Whether two arguments depend on each other.

        Two arguments of mean 0 that share only parts of one softmax count as independent.
        """
        shared = self.reaches[i] & self.reaches[j]
        if self.centred[i] and self.centred[j]:
            shared &= ~self.visit.ties
        return bool(shared)

    def are_twins(self, first: int, second: int) -> bool:
        """Whether the same operations and weights computed both, from different inputs."""
        one, two = self.lineages[first], self.lineages[second]
        return one is not None and two is not None and one.is_twin_of(two)

    def joins_twins(self) -> bool:
        """Whether some arguments are twins."""
        return any(self.are_twins(*pair) for pair in self.pairs())

    def kept_together(
        self,
        name: str,
        groups: Sequence[tuple[int, list[Moments]]],
        output: Signal,
        through: Activation | None,
    ) -> list[list[Kept]]:
        """`together.kept_together` by group of channels and argument; [] if nothing is known."""
        if through is None:
            return []
        factors: list[list[Kept]] = []
        for (_, parts), (_, total) in zip(groups, output.parts, strict=True):
            apart = total.pre is None and share_no_root(parts, self.pairs())
            apart = apart and not (name == "Where" and self.is_placed(parts))
            factors.append(
                kept_together(name, parts, total, through) if apart else [(1.0, None)] * len(parts)
            )
        return factors

    def is_placed(self, parts: Sequence[Moments]) -> bool:
        """Whether the mask `parts[0]` is known, and equal for all channels of a position."""
        mask = parts[0]
        return id(mask) in self.numbers and bool(np.all((mask.mean == 0) | (mask.mean == 1)))

    def made_independent(self, terms: Sequence[Term]) -> tuple[Term, ...]:
        """Rewrites terms over mutually independent signals; empty if that is impossible."""
        return independent(terms, self._reach_of)

    def _reach_of(self, moments: Moments) -> int | None:
        """The bits that a signal depends on; 0 for known numbers."""
        return 0 if id(moments) in self.numbers else self.visit.reach_of(moments)


def _is_centred(moments: Moments) -> bool:
    mean = moments.average(moments.mean)
    return abs(mean) <= 1e-3 * math.sqrt(max(moments.second_moment, 0.0))
