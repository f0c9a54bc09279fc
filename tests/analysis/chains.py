"""Chains of layers whose signals are measured against the engine's predictions."""

import keras
import numpy as np
from keras import ops

import keras_varinit as kv
from tests.gradients import vector_jacobian

L = keras.layers

APPROXIMATE = (0.10, 0.20)

# Sums and averages are exact; what a finite width and batch do to them stays below this.
EXACT = (0.02, 0.02)

ALWAYS = (0.0, 0.0)


def dense(units=128, **options):
    return L.Dense(units, kernel_initializer="he_normal", **options)


def conv(filters=128, k=3, *, rank=2, **options):
    options = {"padding": "same", "kernel_initializer": "he_normal", **options}
    return getattr(L, f"Conv{rank}D")(filters, k, **options)


def chain(*layers):
    def apply(x):
        for layer in layers:
            x = layer(x)
        return x

    return apply


def kernel_at(tensor):
    """The path of the last kernel of the layer that makes a tensor."""
    weights = tensor._keras_history.operation.weights
    return [w.path for w in weights if "kernel" in w.path or "embeddings" in w.path][-1]


def noise(shape, mean=0.0):
    return lambda rng, count: mean + rng.standard_normal((count, *shape))


def check(front, back, shape, allowance=EXACT, *, draws=32, examples=4, error=0.035, **options):
    """Draws, measures, compares.

    `options`: `mean` and source (`inputs`) of the inputs, `scheme`, `settle` to set what stays.
    """
    mean, scheme = options.get("mean", 0.0), options.get("scheme", "he_normal")
    draw_inputs = options.get("inputs", noise(shape, mean))
    settle = options.get("settle", lambda model: None)
    inputs = keras.Input(shape)
    probe = front(inputs)
    end = back(probe)
    model = keras.Model(inputs, end)
    first, second = keras.Model(inputs, probe), keras.Model(probe, end)
    rng = np.random.default_rng(0)
    measured = {"probe": [], "end": [], "gradient": []}
    for draw in range(draws):
        kv.initialize(model, scheme, seed=draw)
        settle(model)
        x = draw_inputs(rng, examples).astype("float32")
        u = ops.convert_to_numpy(first(x, training=True))
        out = ops.convert_to_numpy(second(u, training=True))
        given = rng.standard_normal(out.shape).astype("float32")
        g = vector_jacobian(lambda u: second(u, training=True), u, given)
        for name, values in (("probe", u), ("end", out), ("gradient", g)):
            measured[name].append(np.mean(np.square(values, dtype=np.float64)))
    predicted = kv.analyze(model, input_mean=mean).predicted
    at_probe = predicted[kernel_at(probe)]
    for name, want, allowed in (
        ("probe", at_probe.forward, allowance[0]),
        ("end", predicted[kernel_at(end)].forward, allowance[0]),
        ("gradient", at_probe.backward, allowance[1]),
    ):
        got = np.mean(measured[name])
        standard_error = np.std(measured[name], ddof=1) / np.sqrt(draws) / got
        assert standard_error < error, (name, standard_error)
        assert abs(got / want - 1) < max(4 * standard_error, allowed), (
            f"{name}: measured {got:.4g}, predicted {want:.4g}, off by {got / want - 1:.1%}"
            f" with a standard error of {standard_error:.1%}"
        )


def check_all(cases, function):
    """Calls `function` with what each case makes; all that fail are named together."""
    failures = []
    for name, make in cases.items():
        try:
            function(make())
        except AssertionError as error:
            failures.append(f"{name}: {str(error).splitlines()[0]}")
    assert not failures, "\n".join(failures)


IMAGE = (8, 8, 24)


def maps(x):
    """Two convolutions and a ReLU between them: positions are correlated."""
    return conv(96)(L.ReLU()(conv(96)(x)))


def check_maps(*layers, allowance=APPROXIMATE, **options):
    """`maps`, the layers, a convolution."""
    check(maps, chain(*layers, conv(64)), IMAGE, allowance, **options)
