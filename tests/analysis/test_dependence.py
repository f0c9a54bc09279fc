"""Two towers of the same weights on two inputs, and one layer used twice, against measurement."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from tests.families.rule_cases.case import dense
from tests.gradients import vector_jacobian

pytestmark = pytest.mark.once

WIDTH, DRAWS, EXAMPLES = 128, 160, 8
ALLOWED = 0.05  # three shared kernels: widths count as large


class Towers:
    """u and v by the same layers, a function of both, and a last kernel."""

    def __init__(self, function, *, activation="relu"):
        self.function = function
        self.first, self.last = dense(WIDTH), dense(WIDTH)
        self.tower = [dense(WIDTH, activation=activation) for _ in range(2)]
        inputs = [keras.Input((64,)), keras.Input((64,))]
        self.model = keras.Model(inputs, self.rest(*map(self.first, inputs)))
        self.analysis = kv.analyze(self.model)

    def rest(self, u, v):
        return self.last(self.function(self._end(u), self._end(v)))

    def _end(self, x):
        x = ops.relu(x)
        for layer in self.tower:
            x = layer(x)
        return x

    def predicted(self):
        found = self.analysis.predicted
        return found[self.last.kernel.path].forward, found[self.first.kernel.path].backward

    def measured(self):
        """Means over draws and their standard errors: E u² at the end, the gradient at u."""
        rng, rows = np.random.default_rng(0), []
        for _ in range(DRAWS):
            for layer in (self.first, *self.tower, self.last):
                shape = layer.kernel.shape
                layer.kernel.assign(rng.standard_normal(shape) * np.sqrt(2 / shape[0]))
            u, v = (
                ops.convert_to_numpy(self.first(x))
                for x in rng.standard_normal((2, EXAMPLES, 64)).astype("float32")
            )
            end = ops.convert_to_numpy(self.rest(u, v))
            given = rng.standard_normal(end.shape).astype("float32")
            back = vector_jacobian(lambda u, v=v: self.rest(u, ops.convert_to_tensor(v)), u, given)
            rows.append([np.mean(end.astype("float64") ** 2), np.mean(back**2)])
        return np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(DRAWS)


FUNCTIONS = {
    "difference": lambda a, b: a - b,
    "distance": lambda a, b: ops.abs(a - b),
    "product": lambda a, b: a * b,
    "maximum": ops.maximum,
    "sum": lambda a, b: a + b,
    "average": lambda a, b: keras.layers.Average()([a, b]),
    "side by side": lambda a, b: ops.concatenate([a, b, ops.abs(a - b)], axis=-1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_twins_are_like_two_examples(name):
    towers = Towers(FUNCTIONS[name])
    means, errors = towers.measured()
    for what, mean, error, want in zip(
        ("end", "gradient"), means, errors, towers.predicted(), strict=True
    ):
        assert error < 0.04 * mean, what
        assert abs(mean - want) < max(4 * error, ALLOWED * mean), (what, mean, want, error)


def test_towers_on_one_input_are_not_twins():
    """The same layers on two signals of one input: what they have in common is not known."""
    shared = [dense(WIDTH), dense(WIDTH, activation="relu")]
    x = keras.Input((64,))
    one, two = (shared[1](shared[0](dense(64)(x))) for _ in range(2))
    last = dense(WIDTH)
    model = keras.Model(x, last(one - two))
    analysis = kv.analyze(model)
    assert analysis.predicted[last.kernel.path].forward is None
    assert any("depend on each other" in note for note in analysis.notes)


def test_the_gradient_of_a_sum_over_twins_is_not_known():
    """Its forward moment is; backward the kernels of both towers act together."""
    towers = Towers(lambda a, b: ops.sum(a * b, axis=-1, keepdims=True))
    forward, backward = towers.predicted()
    assert forward is not None
    assert backward is None
    assert any("twins" in note for note in towers.analysis.notes)


def test_examples_of_two_kinds_in_one_batch():
    """Concatenated along the batch: half the examples are of each."""
    x = keras.Input((64,))
    u, last = dense(WIDTH)(x), dense(WIDTH)
    model = keras.Model(x, last(ops.concatenate([u, 3 * dense(WIDTH)(u)], axis=0)))
    # E u² is 2, that of the second half 9·4; a kernel doubles the mean of both.
    assert kv.analyze(model).predicted[last.kernel.path].forward == pytest.approx(2 + 36)
