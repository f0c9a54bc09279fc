"""What the engine predicts of recurrent layers against real ones with weights drawn many times.

A network is a Dense layer, recurrent layers, and a Dense layer. Measured are E u² of every kernel's
output u, and E (dL/du)² for white noise at the end. For the gradient at W's output each recurrent
layer gets a twin whose kernel is [W; I]: the gradient at zeros fed beside x is that at W x. The
mean over draws has a standard error of at most 3 %, and must be within four of them of the
prediction, or within the 3 % that widths of about a hundred do to it.
"""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_varinit as kv
from keras_varinit.families.recurrent import layers
from tests.gradients import vector_jacobian

pytestmark = pytest.mark.once

L = keras.layers
GATES = {L.SimpleRNN: 1, L.GRU: 3, L.LSTM: 4}
ALLOWANCE = 0.03


def biased(seed=0):
    return keras.initializers.RandomNormal(0.4, 0.3, seed=seed)


def redraw(layers, seed):
    """New kernels by the layers' own initializers."""
    for number, layer in enumerate(layers):
        holder = getattr(layer, "cell", layer)
        for name in ("kernel", "recurrent"):
            initializer = getattr(holder, f"{name}_initializer", None)
            variable = getattr(holder, "recurrent_kernel" if name == "recurrent" else name, None)
            if initializer is not None:
                config = {**initializer.get_config(), "seed": 1000 * seed + 10 * number + len(name)}
                variable.assign(type(initializer).from_config(config)(variable.shape))


def twin_of(layer, features, **changes):
    twin = type(layer).from_config({**layer.get_config(), **changes})
    twin.build((None, None, features))
    return twin


def array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), np.float64)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def products_with_state(layer, x, h):
    """U h_{t-1}, of all gates, and the reset gate of a GRU."""
    kernel, before = array(layer.cell.recurrent_kernel), np.zeros_like(h)
    before[:, 1:] = h[:, :-1]
    u = before @ kernel
    if not isinstance(layer, L.GRU):
        return u, None
    units = layer.units
    biases = np.reshape(array(layer.cell.bias), (-1, 3, units)).sum(axis=0)[1]
    columns = slice(units, 2 * units)
    reset = sigmoid(x @ array(layer.cell.kernel)[:, columns] + u[..., columns] + biases)
    if not layer.cell.reset_after:
        u[..., 2 * units :] = (reset * before) @ kernel[:, 2 * units :]
    return u, reset


def measured_once(front, layers, end, x, rng):
    """Second moments by kernel: at its output, and of the gradient there."""
    seconds, gradients = {}, {}
    u = array(front(x))
    seconds[front.kernel.path] = u
    signal, inner, twins = array(ops.relu(u)), [], []
    for layer in layers:
        gates, features = GATES[type(layer)] * layer.units, signal.shape[-1]
        whole = twin_of(layer, features, return_sequences=True)
        twin = twin_of(layer, features + gates)
        wide = np.concatenate([array(layer.cell.kernel), np.eye(gates)])
        for copy, kernel in ((whole, layer.cell.kernel), (twin, wide)):
            copy.cell.kernel.assign(kernel)
            copy.cell.recurrent_kernel.assign(layer.cell.recurrent_kernel)
            copy.cell.bias.assign(layer.cell.bias)
        read = signal[:, ::-1] if layer.go_backwards else signal
        h = array(whole(signal))
        seconds[layer.cell.kernel.path] = read @ array(layer.cell.kernel)
        products, reset = products_with_state(layer, read, h)
        seconds[layer.cell.recurrent_kernel.path] = products
        inner.append((gates, reset))
        twins.append(twin)
        signal = array(layer(signal))
    seconds[end.kernel.path] = array(end(signal))

    def rest(values):
        ends = np.cumsum([u.shape[-1], *(gates for gates, _ in inner)])
        state, *zeros = ops.split(values, ends[:-1].tolist(), axis=-1)
        state = ops.relu(state)
        for twin, zero in zip(twins, zeros, strict=True):
            state = twin(ops.concatenate([state, zero], axis=-1))
        return end(state)

    fed = np.concatenate([u, *(np.zeros((*u.shape[:-1], gates)) for gates, _ in inner)], axis=-1)
    given = rng.standard_normal(seconds[end.kernel.path].shape)
    found = vector_jacobian(rest, fed.astype("float32"), given.astype("float32"))
    place = u.shape[-1]
    gradients[front.kernel.path] = found[..., :place]
    for layer, (gates, reset) in zip(layers, inner, strict=True):
        at_kernel = found[..., place : place + gates]
        place += gates
        gradients[layer.cell.kernel.path] = at_kernel
        at_state = np.array(at_kernel[:, ::-1] if layer.go_backwards else at_kernel)
        if reset is not None and layer.cell.reset_after:
            at_state[..., 2 * layer.units :] *= reset
        gradients[layer.cell.recurrent_kernel.path] = at_state
    return seconds, gradients


def compare(predicted, samples, what):
    mean = np.mean(samples)
    error = np.std(samples, ddof=1) / math.sqrt(len(samples))
    assert error <= 0.03 * mean, f"{what}: {error / mean:.3f} of standard error is no measurement"
    assert predicted == pytest.approx(mean, abs=max(4 * error, ALLOWANCE * mean)), what


def check(*layers, steps=8, features=64, mean=0.0, draws=24, examples=8):
    inputs = keras.Input((steps, features))
    front, end = L.Dense(128, "relu"), L.Dense(512)
    x = front(inputs)
    for layer in layers:
        x = layer(x)
    model = keras.Model(inputs, end(x))
    front_linear = L.Dense(128)
    front_linear.build((None, None, features))
    rng = np.random.default_rng(0)
    forward, backward = {}, {}
    for draw in range(draws):
        redraw([front, *layers, end], draw)
        front_linear.set_weights(front.get_weights())
        x = (mean + rng.standard_normal((examples, steps, features))).astype("float32")
        seconds, gradients = measured_once(front_linear, layers, end, x, rng)
        # The copy of the first layer without its activation has a path of its own.
        for target, found in ((forward, seconds), (backward, gradients)):
            for path, values in found.items():
                path = front.kernel.path if path == front_linear.kernel.path else path
                target.setdefault(path, []).append(np.mean(np.square(values)))
    analysis = kv.analyze(model, input_mean=mean)
    assert analysis.notes == ()
    for path, samples in forward.items():
        compare(analysis.predicted[path].forward, samples, f"{path} forward")
    for path, samples in backward.items():
        compare(analysis.predicted[path].backward, samples, f"{path} backward")


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (L.SimpleRNN, {}),
        (L.SimpleRNN, {"activation": "relu"}),
        (L.SimpleRNN, {"bias_initializer": biased(), "go_backwards": True}),
        (L.LSTM, {}),
        (L.LSTM, {"bias_initializer": biased(), "go_backwards": True}),
        (L.LSTM, {"activation": "softsign", "recurrent_activation": "hard_sigmoid"}),
        (L.GRU, {}),
        (L.GRU, {"bias_initializer": biased()}),
        (L.GRU, {"reset_after": False}),
        (L.GRU, {"reset_after": False, "bias_initializer": biased(), "go_backwards": True}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value) or "plain",
)
def test_one_layer(kind, options, sequences):
    draws = 80 if options.get("activation") == "relu" else 24
    check(kind(128, return_sequences=sequences, **options), draws=draws)


@pytest.mark.parametrize("backwards", [False, True])
def test_two_layers(backwards):
    first = L.LSTM(128, return_sequences=True, go_backwards=backwards)
    check(first, L.GRU(128, go_backwards=backwards), draws=40)


def sequence_model(*layers, steps=6, features=8, **options):
    inputs = keras.Input((steps, features), **options)
    x = inputs
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, L.Dense(4, name="end")(x))


class OwnCell(L.LSTMCell):
    def call(self, inputs, states, training=False):
        return super().call(inputs, states, training)


@pytest.mark.parametrize(
    ("layer", "steps", "reason"),
    [
        (lambda: L.LSTM(4), None, "the number of its steps is not known"),
        (lambda: L.RNN(OwnCell(4)), 6, "OwnCell has a `call` of its own"),
        (lambda: L.SimpleRNN(4, "softmax"), 6, "its activation softmax acts on rows"),
        (
            lambda: L.SimpleRNN(4, None, recurrent_initializer=keras.initializers.Identity()),
            200,
            "its state does not settle in 24 steps",
        ),
    ],
    ids=["length", "call", "rows", "settles"],
)
def test_what_is_not_known_is_none_with_its_reason(layer, steps, reason):
    made = layer()
    analysis = kv.analyze(sequence_model(made, steps=steps))
    noted = f"{made.name}: {reason}, so its output is not known"
    assert [note for note in analysis.notes if "not known" in note] == [noted]
    assert analysis.predicted["end/kernel"].forward is None
    assert analysis.predicted[made.cell.kernel.path].forward is not None
    assert analysis.predicted[made.cell.kernel.path].backward is None


def test_gradients_that_do_not_settle_are_not_known():
    """Near the edge of chaos, Var(U)·m·E f'² = 1, gradients from the end fade too slowly."""
    made = L.SimpleRNN(64)
    model = sequence_model(made, steps=400)
    made.cell.recurrent_initializer = keras.initializers.RandomNormal(0, 1.6 / 8)
    analysis = kv.analyze(model)
    assert analysis.notes == (f"{made.name}: gradients do not settle in 24 steps",)
    assert analysis.predicted["end/kernel"].forward is not None
    assert analysis.predicted[made.cell.kernel.path].backward is None


def test_all_steps_are_counted_where_some_are_left_out(monkeypatch):
    """Following half of the steps gives what following all of them does, to 3 %."""
    for sequences in (True, False):
        found = []
        for limit in (96, 48):
            monkeypatch.setattr(layers, "_STEPS", limit)
            keras.utils.clear_session()
            stack = [L.GRU(32, return_sequences=True), L.LSTM(32, return_sequences=sequences)]
            last = [L.GlobalAveragePooling1D()] if sequences else []
            model = sequence_model(*stack, *last, steps=96)
            found.append([(p.forward, p.backward) for p in kv.analyze(model).predicted.values()])
        np.testing.assert_allclose(found[0], found[1], rtol=0.03)


def test_a_stateful_layer_starts_from_zeros():
    made = L.LSTM(4, stateful=True)
    model = sequence_model(made, batch_size=2)
    assert kv.analyze(model).notes == (f"{made.name}: stateful, and counted from a state of zeros",)


def test_one_step_leaves_the_recurrent_kernel_without_a_scale():
    model = sequence_model(L.LSTM(64), steps=1)
    path = model.layers[1].cell.recurrent_kernel.path
    assert kv.analyze(model).predicted[path].forward is None
    assert [f for f in kv.lint(model) if "scale" in f.rule] == []


@pytest.mark.parametrize("kind", [L.SimpleRNN, L.LSTM, L.GRU])
def test_signal_preserving_by_measurement(kind):
    """W and what follows get E u² = 1; U, whose input it makes itself, is drawn as by ASV."""
    layer = kind(128)
    model = sequence_model(layer, steps=10, features=64)
    samples = {layer.cell.kernel.path: [], "end/kernel": []}
    rng = np.random.default_rng(0)
    inner = keras.Model(model.input, layer.output)
    for seed in range(32):
        report = kv.initialize(model, "signal_preserving", seed=seed)
        x = rng.standard_normal((32, 10, 64)).astype("float32")
        samples[layer.cell.kernel.path].append(np.mean((x @ array(layer.cell.kernel)) ** 2))
        # Over draws of the last kernel: its variance times Σ h².
        variance = report["end/kernel"].stddev ** 2
        samples["end/kernel"].append(variance * 128 * np.mean(array(inner(x)) ** 2))
    for path, each in samples.items():
        compare(1.0, each, path)
    asv = kv.ASVForward(context=report[layer.cell.recurrent_kernel.path].context)
    shape = tuple(layer.cell.recurrent_kernel.shape)
    assert report[layer.cell.recurrent_kernel.path].stddev == pytest.approx(asv.stddev(shape))
    assert kv.lint(model) == []


def test_a_linear_layer_is_not_compared_with_its_kernel_alone():
    model = sequence_model(L.SimpleRNN(8, None))
    rows = list(kv.measure_signal(model, np.ones((2, 6, 8), "float32")))
    assert [row.predicted_second_moment is None for row in rows] == [True, False]
