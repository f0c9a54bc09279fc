"""How much residual branches add to their streams.

For an addition s + F of a shortcut s and a branch F, the wanted share of a branch end is

    E F² = share · E s².

Where F has a mean, as behind an activation, and the stream too, their sum grows by more than E F².
There the growth E (s + F)² - E s² takes the place of E F².

With f the factor on the variances of the branch's ends (E u² = f at their kernels, γ² = f at their
normalizations), E F² = f·c, so that f = share·E s²/c. c follows from a walk of the signal engine,
and E s², which depends on the branches before, during the next one. Where an activation follows the
branch's end, or F has a mean, c depends on f: the walks are repeated until f no longer changes.
"""

import math
from collections.abc import Mapping, Sequence

from keras_varinit.analysis.residual import BranchEnds

_MOST_WALKS = 20

_CLOSE = 1e-4

_MOVED = 0.05


class BranchShares:
    """The ends of the branches whose shares are wanted.

    Args:
        branch_ends: What ends the branches of each residual addition.
        shares: The share that is wanted, by the `id` of the kernel or γ.

    Attributes:
        watched: The second moments of shortcuts and branches, which the engine sets.
        gains: `branch_gain` of each branch end in the latest walk.
        has_converged: Whether the shares were met in the latest walk.
    """

    def __init__(self, branch_ends: Sequence[BranchEnds], shares: Mapping[int, float]) -> None:
        self._shares = shares
        self._ends: dict[int, BranchEnds] = {}
        for ends in branch_ends:
            # Behind a normalization, only its scale matters.
            keys = ends.scales or ends.kernels
            if keys and all(key in shares for key in keys):
                self._ends |= dict.fromkeys(keys, ends)
        self._additions = tuple(dict.fromkeys(self._ends.values()))
        self._costs: dict[BranchEnds, float] = {}
        self._factors: dict[BranchEnds, float] = {}
        self._streams: dict[int, float] = {}
        self._before: dict[BranchEnds, tuple[float, float]] = {}
        self.watched: dict[int, float] = {}
        self.gains: dict[int, float] = {}
        self.has_converged = True
        self.walks = 0

    def __contains__(self, key: int) -> bool:
        return key in self._ends

    def __bool__(self) -> bool:
        return bool(self._ends)

    def start(self) -> None:
        """Prepares for a walk."""
        self._streams = dict(self.watched)
        tensors = (t for e in self._additions for t in (e.shortcut, e.sum, *e.branches))
        self.watched.update(dict.fromkeys(tensors, math.nan))
        self._factors, self.gains = {}, {}

    def gain(self, key: int, unit: float) -> float | None:
        """`branch_gain` of a branch end, during a walk; None if it is not known.

        Args:
            key: The `id` of its variable.
            unit: E u² of the kernel's output for a kernel of variance 1; 1 for a γ.
        """
        ends, share = self._ends[key], self._shares[key]
        factor = self._factors.setdefault(ends, self._factor(ends, share))
        gain = share * unit / factor
        if not (math.isfinite(gain) and gain > 0):
            return None
        self.gains.setdefault(key, gain)
        return self.gains[key]

    def _factor(self, ends: BranchEnds, share: float) -> float:
        stream = self.watched[ends.shortcut]
        if not math.isfinite(stream):  # a projection, computed after its branch
            stream = self._streams.get(ends.shortcut, 1.0)
        return share * stream / self._costs.get(ends, 1.0)

    def finish(self) -> bool:
        """Takes in the results of a walk; whether another one is needed.

        Ends on which the branch does not depend are dropped, such as kernels in front of a
        normalization by hand.
        """
        self.walks += 1
        needed = False
        for ends, factor in self._factors.items():
            stream = self.watched[ends.shortcut]
            added = sum(self.watched[t] for t in ends.branches)
            added = max(added, self.watched[ends.sum] - stream)
            if not (added > 0 and stream > 0 and math.isfinite(added + stream)):
                self._drop(ends)
                needed = True
                continue
            factor_before, added_before = self._before.get(ends, (factor, added))
            changed = abs(math.log(factor / factor_before))
            if changed > _MOVED and abs(math.log(added / added_before)) < changed / 10:
                self._drop(ends)
                needed = True
                continue
            self._before[ends] = factor, added
            self._costs[ends] = added / factor
            share = self._shares[(ends.scales or ends.kernels)[0]]
            needed |= abs(math.log(added / (share * stream))) > _CLOSE
        self.has_converged = not needed
        return needed and self.walks < _MOST_WALKS

    def _drop(self, ends: BranchEnds) -> None:
        for key in ends.scales or ends.kernels:
            del self._ends[key]
