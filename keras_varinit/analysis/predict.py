"""What the signal engine predicts of a graph's kernels.

Where nothing is known of a signal, normalization makes its scale known again, but not how far its
positions and examples resemble each other, on which attention, pooling and their gradients depend.
The engine walks such graphs twice, once with all positions apart and once with all of them alike:
a number is known where both walks give it.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.analysis.propagate import Engine, Variances
from keras_varinit.signals.roles import Role
from keras_varinit.tracing.reader import Graph

_ALIKE = 0.9

# By how much two walks may differ in a number that counts as known.
_FORWARD, _BACKWARD = 1.05, 1.15

NOT_RENEWED = (
    "how far positions resemble each other is not known behind a normalization of what is not "
    "known, nor what depends on it"
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the engine says of one kernel's output u, at the first call of its layer.

    `forward` is E u²; `backward` is E (dL/du)² where the gradient at the model's outputs, in front
    of a last softmax or sigmoid, is white noise of unit variance; `gain` is E u² for a kernel of
    variance 1. None is what is not known.
    """

    forward: float | None = None
    backward: float | None = None
    gain: float | None = None

    def agreed(self, other: "Prediction") -> "Prediction":
        """What another prediction says too."""
        return Prediction(
            _agreed(self.forward, other.forward, _FORWARD),
            _agreed(self.backward, other.backward, _BACKWARD),
            _agreed(self.gain, other.gain, _FORWARD),
        )


def propagate(
    graph: Graph,
    roles: Sequence[Role],
    variance_of: Variances,
    *,
    input_mean: float = 0.0,
    input_variance: float = 1.0,
    backward: bool = True,
) -> tuple[dict[int, Prediction], list[str]]:
    """Predictions by the `id` of the kernel's variable, and notes on what is not known.

    `variance_of(variable, gain)` is the variance of a kernel's entries, NaN where it is not known.
    """

    def walked(alike: float) -> Engine:
        engine = Engine(graph, roles, variance_of, alike)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            engine.forward(input_mean, input_variance)
            if backward:
                engine.backward()
        return engine

    engine = walked(0.0)
    predictions, notes = _predictions(engine), list(engine.notes)
    if engine.has_renewed:
        others = _predictions(walked(_ALIKE))
        agreed = {key: each.agreed(others[key]) for key, each in predictions.items()}
        if agreed != predictions:
            notes.append(NOT_RENEWED)
        predictions = agreed
    return predictions, list(dict.fromkeys(notes))


def _predictions(engine: Engine) -> dict[int, Prediction]:
    return {
        key: Prediction(
            _known(engine.forwards[key]),
            _known(engine.backwards.get(key, math.nan)),
            _known(engine.gains.get(key, math.nan)),
        )
        for key in engine.forwards
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _agreed(first: float | None, second: float | None, factor: float) -> float | None:
    if first is None or second is None:
        return None
    return first if max(first, second) <= factor * min(first, second) else None
