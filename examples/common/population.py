"""Many trainings of one network by one compiled step.

Seeds, schemes and learning rates differ in numbers alone, so a network is compiled once for all of
its trainings. On a CPU that is what counts: compiling takes as long as several small trainings.
Trainings stacked by `jax.vmap`, or steps joined by `jax.lax.scan`, gain something in tiny networks
only, and slow convolutions down: `examples/benchmarks/stacked_trainings.py` measures both.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

#: Rows that are scored at once: all of a large data set do not fit a GPU.
_ROWS = 2048

Arrays = tuple[np.ndarray, np.ndarray]
Metric = Literal["accuracy", "error", "nats"]


@dataclasses.dataclass(frozen=True)
class Task:
    """Data in three parts, and what is measured on them.

    Args:
        name: For tables and plots.
        train: Inputs and targets to train on.
        validation: Those that a learning rate is chosen by.
        test: Those that are reported.
        metric: `"accuracy"`; `"error"`, the root of the mean squared error ÷ the standard deviation
            of the training targets; `"nats"`, the cross-entropy of a target.
    """

    name: str
    train: Arrays
    validation: Arrays
    test: Arrays
    metric: Metric

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric == "accuracy"

    @property
    def outputs(self) -> int:
        """How many numbers a network outputs, for each target."""
        targets = self.train[1]
        return targets.shape[-1] if self.metric == "error" else int(targets.max()) + 1

    @property
    def trivial(self) -> float:
        """The metric of the best constant answer, which a lost training is given."""
        if self.metric == "error":
            return 1.0
        shares = np.bincount(self.train[1].ravel()) / self.train[1].size
        if self.metric == "accuracy":
            return float(shares.max())
        return float(-np.sum(shares[shares > 0] * np.log(shares[shares > 0])))


@dataclasses.dataclass(frozen=True)
class History:
    """The metric at equal distances in training.

    `is_lost` says that the loss, or the metric on validation data, stopped being a finite number;
    the values from there on are those of a constant answer.
    """

    loss: list[float]
    validation: list[float]
    test: list[float]
    is_lost: bool


class Population:
    """Trains copies of a model that differ in their weights, learning rate and order of data.

    The learning rate rises in a straight line for the share `warmup` of all steps, then falls to
    zero along a cosine.

    Args:
        model: Built; its weights are not used.
        optimizer: Its learning rate is not used.
        task: Data and metric.
        batch_size: Rows in a step.
        steps: Of one training.
        points: How often in a training the metric is taken.
        warmup: Between 0 and 1.

    Raises:
        ValueError: Fewer rows than a batch, fewer steps than points, or another backend than JAX.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        task: Task,
        *,
        batch_size: int,
        steps: int,
        points: int,
        warmup: float = 0.0,
    ) -> None:
        if keras.config.backend() != "jax":
            raise ValueError(f"needs the backend jax, got {keras.config.backend()}.")
        if len(task.train[0]) < batch_size or steps < points:
            raise ValueError(
                f"batches of {batch_size} out of {len(task.train[0])} rows, {points} points in "
                f"{steps} steps."
            )
        self._model, self._optimizer, self._task = model, optimizer, task
        self._batch_size, self._steps, self._points = batch_size, steps, points
        self._warmup = warmup
        optimizer.build(model.trainable_variables)
        self._optimizer_start = [ops.convert_to_numpy(v) for v in optimizer.variables]
        self._rate = [v.name for v in optimizer.variables].index("learning_rate")
        jax = importlib.import_module("jax")
        self._gradient = jax.value_and_grad(self._loss, has_aux=True)
        self._compiled_step = jax.jit(self.step, donate_argnums=(0,))
        self._compiled_scores = jax.jit(self._scores)
        parts = zip(task.validation, task.test, strict=True)
        self._x, self._y = (np.concatenate(part) for part in parts)
        self._variance = float(np.var(task.train[1])) if task.metric == "error" else 1.0

    def train(self, weights: Sequence[np.ndarray], rate: float, seed: int) -> History:
        """Does one training.

        Args:
            weights: Of the model, as its `get_weights` returns them.
            rate: The largest learning rate.
            seed: Of the order of the data.
        """
        state = self.start(weights)
        batches = self._batches(seed)
        losses, validation, test = [], [], []
        ends = [round(self._steps * (n + 1) / self._points) for n in range(self._points)]
        for begin, end in itertools.pairwise([0, *ends]):
            since = []
            for step in range(begin, end):
                rows = next(batches)
                x, y = (part[rows] for part in self._task.train)
                state, loss = self._compiled_step(state, x, y, np.float32(rate * self.share(step)))
                since.append(loss)
            losses.append(float(np.mean([float(loss) for loss in since])))
            scores = self._all_scores(state)
            on_validation, on_test = np.split(scores, [len(self._task.validation[0])])
            if not (math.isfinite(losses[-1]) and np.isfinite(on_validation).all()):
                missing = self._points - len(validation)
                validation += [self._task.trivial] * missing
                test += [self._task.trivial] * missing
                losses += [math.nan] * (self._points - len(losses))
                return History(losses, validation, test, is_lost=True)
            validation.append(self._metric(on_validation))
            test.append(self._metric(on_test))
        return History(losses, validation, test, is_lost=False)

    def share(self, step: int) -> float:
        """The share of the largest learning rate in a step, counted from 0."""
        warm = self._warmup * self._steps
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (self._steps - warm)))

    def _metric(self, scores: np.ndarray) -> float:
        """The metric of rows; a network worse than a constant is as bad, however much worse."""
        value = float(scores.mean(dtype=np.float64))
        value = math.sqrt(value) if self._task.metric == "error" else value
        return value if self._task.higher_is_better else min(value, self._task.trivial)

    def _batches(self, seed: int) -> Iterator[np.ndarray]:
        """Rows of each batch: one permutation after the other, what is left of each dropped."""
        rows = len(self._task.train[0])
        whole = rows // self._batch_size * self._batch_size
        for epoch in itertools.count():
            order = np.random.default_rng([seed, epoch]).permutation(rows)[:whole]
            yield from order.reshape(-1, self._batch_size)

    def start(self, weights: Sequence[np.ndarray]) -> Any:
        """What `step` begins with: trainable weights, the others, the optimizer's.

        Args:
            weights: Of the model, as its `get_weights` returns them.
        """
        values = {id(v): ops.convert_to_numpy(v) for v in self._model.variables}
        values.update(zip(map(id, self._model.weights), weights, strict=True))
        trainable, others = (
            [ops.array(values[id(v)]) for v in variables]
            for variables in (
                self._model.trainable_variables,
                self._model.non_trainable_variables,
            )
        )
        return trainable, others, [ops.array(v) for v in self._optimizer_start]

    def _loss(self, trainable: Any, others: Any, x: Any, y: Any) -> Any:
        outputs, others = self._model.stateless_call(trainable, others, x, training=True)
        if self._task.metric == "error":
            return ops.mean(ops.square(outputs - y)), others
        losses = keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)
        return ops.mean(losses), others

    def step(self, state: Any, x: Any, y: Any, rate: Any) -> Any:
        """One step, without effects: a function for JAX to compile.

        Args:
            state: As of `start`.
            x: Inputs, `(batch_size, …)`.
            y: Targets.
            rate: The learning rate of this step.

        Returns:
            The next state, and the mean loss.
        """
        trainable, others, variables = state
        (loss, others), gradients = self._gradient(trainable, others, x, y)
        variables = [rate if n == self._rate else v for n, v in enumerate(variables)]
        trainable, variables = self._optimizer.stateless_apply(variables, gradients, trainable)
        return (trainable, others, variables), loss

    def _all_scores(self, state: Any) -> np.ndarray:
        """The metric of each row, by blocks of one length, so that any number of rows fits."""
        rows = len(self._x)
        size = min(rows, _ROWS)
        # The last block is filled up with rows from the front, whose scores are dropped.
        order = np.arange(math.ceil(rows / size) * size) % rows
        scores = [
            self._compiled_scores(*state[:2], self._x[block], self._y[block])
            for block in order.reshape(-1, size)
        ]
        return np.concatenate([np.asarray(block) for block in scores])[:rows]

    def _scores(self, trainable: Any, others: Any, x: Any, y: Any) -> Any:
        """The metric of each row, that of `"error"` squared."""
        outputs, _ = self._model.stateless_call(trainable, others, x, training=False)
        if self._task.metric == "error":
            scores = ops.square(outputs - y) / self._variance
        elif self._task.metric == "accuracy":
            # A tie, as among outputs that are not finite, is no answer.
            scores = ops.equal(ops.argmax(outputs, -1), y) & ops.all(ops.isfinite(outputs), -1)
        else:
            scores = keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)
        scores = ops.cast(scores, "float32")
        return ops.mean(ops.reshape(scores, (len(x), -1)), axis=1)
