"""Statistics over batches, and the rows of a report made from them."""

import dataclasses
import math
from collections.abc import Mapping

import keras
import numpy as np

from keras_varinit.analysis import Prediction
from keras_varinit.diagnostics.report import SignalRow
from keras_varinit.running.batches import Batch
from keras_varinit.running.gradients import Summaries
from keras_varinit.running.points import Point, normalized_embeddings
from keras_varinit.running.statistics import Flatness, RunningMoments, flat_parts
from keras_varinit.tracing.names import variable_names
from keras_varinit.typing import Model


class Statistics:
    """Moments, histograms and counts of all points, accumulated over batches."""

    def __init__(self) -> None:
        self.points: dict[str, Point] = {}
        self.moments: dict[tuple[str, str], RunningMoments] = {}
        self.flatness: dict[str, Flatness] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.inputs = RunningMoments()
        self.examples = 0

    def scales(self) -> dict[tuple[str, str], float]:
        """The units of the histograms so far, by kind and point."""
        return {key: moments.scale for key, moments in self.moments.items()}

    def add(self, summaries: Summaries, batch: Batch) -> None:
        """Adds the summaries of a batch."""
        self.points.update(summaries.points)
        self.shapes.update(summaries.shapes)
        self.examples += batch.size
        kinds = {
            "forward": summaries.forward,
            "backward": summaries.backward,
            "output": summaries.output,
        }
        for kind, vectors in kinds.items():
            for name, vector in vectors.items():
                moments = self.moments.setdefault((kind, name), RunningMoments())
                moments.add(vector, summaries.sizes[name])
        for name, counts in summaries.flat.items():
            function = self.points[name].function
            if function is not None:
                flatness = self.flatness.setdefault(name, Flatness(flat_parts(function)))
                flatness.add(counts, summaries.sizes[name])
        for leaf in keras.tree.flatten(batch.x):
            values = np.asarray(keras.ops.convert_to_numpy(leaf))
            if values.dtype.kind == "f":
                self.inputs.add_values(values)

    @property
    def input_second_moment(self) -> float | None:
        """E x² of the model's floating-point inputs, or None without any."""
        return self.inputs.second_moment if self.inputs.count else None

    def rows(
        self, model: Model, predictions: Mapping[int, Prediction], gradients: str
    ) -> tuple[SignalRow, ...]:
        """The rows, in the order in which the points ran."""
        paths = {key: path for key, (path, _, _) in variable_names(model).items()}
        normalized = normalized_embeddings(self.points.values())
        rows = [
            self._row(point, paths, predictions, name in normalized)
            for name, point in self.points.items()
            if ("forward", name) in self.moments
        ]
        return _with_scaled_gradients(rows) if gradients == "loss" else tuple(rows)

    def _row(
        self,
        point: Point,
        paths: dict[int, str],
        predictions: Mapping[int, Prediction],
        normalized: bool,
    ) -> SignalRow:
        forward = self.moments["forward", point.name]
        backward = self.moments.get(("backward", point.name))
        output = self.moments.get(("output", point.name), forward)
        flatness = self.flatness.get(point.name)
        predicted = predictions.get(id(point.kernel))
        return SignalRow(
            name=point.name,
            path=paths.get(id(point.kernel), point.name),
            operation=type(point.operation).__name__,
            kind=point.kind,
            activation=None if point.function is None else point.function.name,
            mean=forward.mean if forward.count else math.nan,
            variance=forward.variance,
            second_moment=forward.second_moment,
            shape=self.shapes[point.name],
            output_mean=output.mean if output.count else math.nan,
            output_variance=output.variance,
            gradient_second_moment=None if backward is None else backward.second_moment,
            dead_fraction=None if flatness is None else flatness.dead_fraction,
            saturated_fraction=None if flatness is None else flatness.saturated_fraction,
            nonfinite_count=forward.nonfinite,
            gradient_nonfinite_count=0 if backward is None else backward.nonfinite,
            predicted_second_moment=None if predicted is None else predicted.forward,
            predicted_gradient_second_moment=None if predicted is None else predicted.backward,
            histogram=output.histogram(),
            gradient_histogram=None if backward is None else backward.histogram(),
            normalized=normalized,
        )


def _with_scaled_gradients(rows: list[SignalRow]) -> tuple[SignalRow, ...]:
    """Scales predictions, which are for a unit gradient at the output, to the loss's gradient.

    The factor makes the prediction of the last layer exact.
    """
    for row in reversed(rows):
        measured, predicted = row.gradient_second_moment, row.predicted_gradient_second_moment
        if measured and predicted:
            factor = measured / predicted
            break
    else:
        return tuple(rows)
    return tuple(
        dataclasses.replace(
            row,
            predicted_gradient_second_moment=(
                None
                if row.predicted_gradient_second_moment is None
                else row.predicted_gradient_second_moment * factor
            ),
        )
        for row in rows
    )
