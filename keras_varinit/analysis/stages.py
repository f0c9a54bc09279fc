"""Stages: what stands between two kernels, looking back from one and ahead from the other."""

import dataclasses

from keras_varinit.maths.quadrature import Activation, Pool, stage_gains
from keras_varinit.signals.roles import Pooling

Steps = tuple[Activation | Pool, ...]


@dataclasses.dataclass(frozen=True)
class StageBehind:
    """What a tensor carries: steps since its stage began, or a known second moment.

    `raw` marks the model's input, `value` the mean second moment of a concatenation.
    """

    steps: Steps = ()
    value: float | None = None
    raw: bool = False

    def then(self, step: Activation | Pool) -> "StageBehind":
        """The signal after one more step; the model's input stays what it is."""
        if self.raw:
            return self
        return StageBehind((*self.steps, step))


@dataclasses.dataclass(frozen=True)
class StageAhead:
    """The steps behind a layer; the first activation and pooling, T the product of that kind."""

    steps: Steps = ()
    activation: str | None = None
    pooling: str | None = None
    pool_size: int | None = 1

    def with_activation(self, activation: Activation) -> "StageAhead":
        """The stage with one more activation."""
        return dataclasses.replace(
            self,
            steps=(*self.steps, activation),
            activation=self.activation or activation.name,
        )

    def with_pooling(self, pooling: Pooling) -> "StageAhead":
        """The stage with one more pooling; one of unknown size has no effect on the gains."""
        step = pooling.step()
        known = self.pool_size
        if self.pooling is None:
            size = pooling.size
        elif self.pooling == pooling.kind and known is not None and pooling.size is not None:
            size = known * pooling.size
        else:
            size = known
        return dataclasses.replace(
            self,
            steps=self.steps if step is None else (*self.steps, step),
            pooling=self.pooling or pooling.kind,
            pool_size=size,
        )

    def at_output(self) -> "StageAhead":
        """A sigmoid at the end of the model is part of the loss."""
        last = self.steps[-1] if self.steps else None
        if isinstance(last, Activation) and last.name == "sigmoid":
            return dataclasses.replace(self, steps=self.steps[:-1])
        return self


class Gains:
    """Gains of stages, each computed once."""

    def __init__(self) -> None:
        self._known: dict[Steps, tuple[float, float]] = {}

    def of(self, steps: Steps) -> tuple[float, float]:
        """τ and γ of a stage."""
        if steps not in self._known:
            self._known[steps] = stage_gains(steps)
        return self._known[steps]

    def second_moment(self, signal: StageBehind) -> float:
        """τ of a signal."""
        if signal.raw:
            return 1.0
        return self.of(signal.steps)[0] if signal.value is None else signal.value
