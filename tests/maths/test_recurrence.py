"""The law of recurrent cells where it is known exactly, and what it does at its edges."""

import numpy as np
import pytest

from keras_varinit.maths import recurrence as law
from keras_varinit.maths.quadrature import Activation, named_activation

pytestmark = pytest.mark.once

LINEAR = named_activation("linear")
ONE = Activation("one", np.ones_like, ("one",))
ZERO_ONE = Activation("half", lambda s: np.full_like(s, 0.5), ("half",))
COUNT, SCALE = 6, 0.3


def white(count=COUNT, second=2.0):
    return law.Steps(np.zeros(count), second * np.eye(count), np.zeros((count, count)))


def cell(gates, activation=LINEAR, gate=ONE, **options):
    biases = options.pop("biases", np.zeros((2, gates, 1)))
    return law.Cell(options.pop("scale", SCALE), activation, gate, *biases, **options)


def summed(count, decay=1.0):
    """E c_t c_s of c_t = decay·c_{t-1} + a_t, E a_t a_s = 2·[t = s] + SCALE·E c_{t-1} c_{s-1}."""
    covariance, increments = np.zeros((count + 1, count + 1)), np.zeros((count, count))
    powers = np.array([[decay ** (t - s) * (s <= t) for s in range(count)] for t in range(count)])
    for t in range(count):
        increments = 2 * np.eye(count) + SCALE * covariance[:count, :count]
        covariance[1 : t + 2, 1 : t + 2] = (powers @ increments @ powers.T)[: t + 1, : t + 1]
    return covariance[1:, 1:]


def test_a_linear_recurrence_is_a_sum_of_powers():
    states = law.simple_recurrence(white(), cell(1))
    seconds = [2 * sum(SCALE**k for k in range(t + 1)) for t in range(COUNT)]
    np.testing.assert_allclose(states.outputs.own, np.diag(seconds), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(states.recurrent, [0, *(SCALE * s for s in seconds[:-1])], rtol=2e-5)
    back = states.pullback(np.eye(COUNT), [0.0])
    gradients = [sum(SCALE**k for k in range(COUNT - t)) for t in range(COUNT)]
    np.testing.assert_allclose(np.diagonal(back.kernel), gradients, rtol=1e-6)
    assert back.start == pytest.approx((SCALE * gradients[0],))


def test_an_lstm_with_open_gates_is_a_running_sum():
    states = law.lstm_recurrence(white(), cell(4))
    np.testing.assert_allclose(states.outputs.own, summed(COUNT), rtol=1e-6)
    np.testing.assert_allclose(states.last[1][1], summed(COUNT)[-1, -1], rtol=1e-6)
    # Only the candidate's gate has a slope: c's gradient is the sum of all that arrive later.
    last = np.zeros((COUNT, COUNT))
    last[-1, -1] = 1.0
    back = states.pullback(last, [0.0, 0.0])
    assert back.kernel[-1, -1] == pytest.approx(1.0, rel=0.05)
    assert back.kernel[-2, -2] == pytest.approx(1.0 + SCALE, rel=0.05)


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_gru_with_gates_at_a_half_is_a_mean(reset_after):
    """h' = h/2 + (W x + U h/2)/2."""
    states = law.gru_recurrence(white(), cell(3, gate=ZERO_ONE, reset_after=reset_after))
    expected = np.zeros((COUNT + 1, COUNT + 1))
    powers = np.array([[0.5 ** (t - s) * (s <= t) for s in range(COUNT)] for t in range(COUNT)])
    for t in range(COUNT):
        increments = (2 * np.eye(COUNT) + SCALE / 4 * expected[:COUNT, :COUNT]) / 4
        expected[1 : t + 2, 1 : t + 2] = (powers @ increments @ powers.T)[: t + 1, : t + 1]
    # W x and U h are drawn apart, and are orthogonal up to 1/√(2·4,096).
    np.testing.assert_allclose(
        np.diagonal(states.outputs.own), np.diagonal(expected)[1:], rtol=0.03
    )


@pytest.mark.parametrize(
    ("recurrence", "gates"),
    [(law.simple_recurrence, 1), (law.lstm_recurrence, 4), (law.gru_recurrence, 3)],
)
class TestEveryCell:
    def numbers(self, gates, **options):
        tanh, sigmoid = named_activation("tanh"), named_activation("sigmoid")
        return cell(gates, tanh, sigmoid, **options)

    def test_equal_calls_give_equal_numbers(self, recurrence, gates):
        found = []
        for _ in range(2):
            law._normals.cache_clear()
            states = recurrence(white(), self.numbers(gates))
            back = states.pullback(np.eye(COUNT), [0.0, 0.0])
            found.append((states.outputs.own, states.outputs.others, back.kernel))
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_two_examples_with_one_input_are_one(self, recurrence, gates):
        """A constant input, the same for all: its covariance has rank 1."""
        ones = np.ones((COUNT, COUNT))
        states = recurrence(law.Steps(np.zeros(COUNT), ones, ones), self.numbers(gates))
        np.testing.assert_allclose(states.outputs.own, states.outputs.others, rtol=1e-4, atol=1e-6)
        back = states.pullback(np.eye(COUNT), [0.0, 0.0])
        assert np.isfinite(back.kernel).all()

    def test_symmetric_states_of_two_examples_have_nothing_in_common(self, recurrence, gates):
        states = recurrence(white(), self.numbers(gates))
        size = np.diagonal(states.outputs.own).max()
        assert np.abs(states.outputs.others).max() < 4 / np.sqrt(law.SAMPLES) * size
        assert np.abs(states.outputs.mean).max() < 4 * np.sqrt(size / (2 * law.SAMPLES))

    def test_a_dead_input_gives_nothing(self, recurrence, gates):
        states = recurrence(white(second=0.0), self.numbers(gates))
        assert not states.outputs.own.any()
        back = states.pullback(np.zeros((COUNT, COUNT)), [0.0, 0.0])
        assert not back.kernel.any()

    def test_no_number_makes_no_number(self, recurrence, gates):
        for bad in (np.nan, np.inf):
            with np.errstate(invalid="ignore", over="ignore"):
                states = recurrence(white(second=bad), self.numbers(gates, scale=0.1))
                assert not np.isfinite(states.outputs.own[-1, -1])
                states.pullback(np.eye(COUNT), [0.0, 0.0])

    def test_recurrent_dropout_adds_to_one_example_alone(self, recurrence, gates):
        ones = 0.5 * np.ones((COUNT, COUNT))
        inputs = law.Steps(np.zeros(COUNT), ones + np.eye(COUNT), ones)
        kept = [recurrence(inputs, self.numbers(gates, kept=k)) for k in (1.0, 0.5)]
        np.testing.assert_allclose(kept[1].recurrent[1], 2 * kept[0].recurrent[1], rtol=1e-9)
