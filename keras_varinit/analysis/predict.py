"""Predictions of the signal engine for a graph's kernels.

Normalization makes the scale of an unknown signal known again, but not the correlation of its
positions and examples, on which attention, pooling and their gradients depend. The engine walks
such graphs twice, with uncorrelated and with strongly correlated positions, and keeps the
predictions on which both walks agree.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from keras_varinit.analysis.propagate import Deltas, Engine, Scales, Variances, no_delta, no_scale
from keras_varinit.signals.roles import Role
from keras_varinit.threads import one_thread
from keras_varinit.tracing.reader import Graph

_ALIKE = 0.9

# Largest ratio of the predictions of two walks that agree.
_FORWARD, _BACKWARD = 1.05, 1.15

NOT_RENEWED = (
    "the correlation between positions is unknown after an unknown signal is normalized, and so "
    "is what depends on it"
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one kernel's output u, at the first call of its layer.

    Args:
        forward: E u², None if unknown.
        backward: E (dL/du)², where the gradient at the model's outputs, before a final softmax or
            sigmoid, is white noise of unit variance; None if unknown.
        gain: E u² for a kernel of variance 1, None if unknown.

    Units: second moments.
    """

    forward: float | None = None
    backward: float | None = None
    gain: float | None = None

    def agreed(self, other: "Prediction") -> "Prediction":
        """The quantities in which another prediction agrees."""
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
    is_delta: Deltas = no_delta,
    scale_of: Scales = no_scale,
    watched: dict[int, float] | None = None,
) -> tuple[dict[int, Prediction], list[str]]:
    """Predictions by the `id` of the kernel's variable, and notes on what is not known.

    Args:
        graph: The model's graph.
        roles: The role of each node.
        variance_of: `variance_of(variable, gain)` is the variance of a kernel's entries, NaN if
            unknown.
        input_mean: Mean of an entry of the model's inputs.
        input_variance: Variance of an entry of the model's inputs.
        backward: Whether to follow gradients too.
        is_delta: Whether a kernel is zero at every tap of its window but the central one.
        scale_of: E γ² of a normalization's scale; None for its present value.
        watched: Tensors whose second moments are set as soon as they are computed.
    """

    def walked(alike: float) -> Engine:
        engine = Engine(graph, roles, variance_of, alike, is_delta, scale_of, watched)
        with one_thread(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
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
