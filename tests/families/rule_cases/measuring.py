"""Draws the kernels of a case again and again, and measures what the engine predicts."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

import keras_varinit as kv
from keras_varinit import keras_private
from keras_varinit.analysis.contexts import read
from keras_varinit.initializers.laws import as_drawn

# Draws between two looks at the errors, and draws before the first: means of few draws are skewed.
_BATCH, _MINIMUM = 32, 96
_NAMES = ("probe", "end", "gradient")


@dataclasses.dataclass(frozen=True)
class Measured:
    """The mean over draws, and its standard error as a share of it."""

    mean: float
    error: float


def kernel_at(tensor):
    """The last kernel of the layer that makes a tensor."""
    weights = tensor._keras_history.operation.weights
    return [w for w in weights if "kernel" in w.path or "embeddings" in w.path][-1]


class Network:
    """The model of a case, what the engine says of it, and a function that measures one draw."""

    def __init__(self, case):
        self.case = case
        several = isinstance(case.shape, list)
        shapes = case.shape if several else [case.shape]
        inputs = [keras.Input(shape) for shape in shapes]
        self.probe = case.front(inputs[0])
        self.end = case.back(self.probe, *inputs[1:])
        self.model = keras.Model(inputs, self.end)
        self.analysis = kv.analyze(self.model, input_mean=case.mean)
        self.nodes = read(self.model).graph.nodes
        self.first = keras.Model(inputs[0], self.probe)
        self.second = keras.Model([self.probe, *inputs[1:]], self.end)
        self.kernels = list(_kernels(self.model, self.analysis))
        self.step = _STEPS[keras.backend.backend()](self.first, self.second)
        self.rng = np.random.default_rng(0)
        self.shape = None

    def predicted(self):
        """E u² at the probe and at the end, E (dL/du)² at the probe."""
        at_probe = self.analysis.predicted[kernel_at(self.probe).path]
        at_end = self.analysis.predicted[kernel_at(self.end).path]
        return dict(zip(_NAMES, (at_probe.forward, at_end.forward, at_probe.backward), strict=True))

    def draw(self):
        """The mean squares of one draw of kernels, inputs and gradient."""
        for variable, draw in self.kernels:
            variable.assign(draw(self.rng).astype("float32"))
        inputs = self._inputs(self.case.examples)
        if self.shape is None:  # of what comes out, which may depend on the numbers
            tensors = [ops.convert_to_tensor(x) for x in inputs]
            self.shape = self.second([self.first(tensors[0]), *tensors[1:]]).shape
        given = self.rng.standard_normal(tuple(self.shape)).astype("float32")
        values = self.step(inputs, given)
        return [np.mean(np.square(np.asarray(v, np.float64))) for v in values]

    def _inputs(self, count):
        case = self.case
        if case.inputs is not None:
            drawn = case.inputs(self.rng, count)
            arrays = drawn if isinstance(drawn, list) else [drawn]
        else:
            shapes = case.shape if isinstance(case.shape, list) else [case.shape]
            arrays = [case.mean + self.rng.standard_normal((count, *shape)) for shape in shapes]
        return [np.asarray(a, "float32") for a in arrays]

    def measure(self):
        """Draws until each mean is as certain as the case wants it."""
        rows = []
        while len(rows) < self.case.draws:
            rows += [self.draw() for _ in range(_BATCH)]
            means = np.mean(rows, axis=0)
            errors = np.std(rows, axis=0, ddof=1) / math.sqrt(len(rows)) / np.maximum(means, 1e-300)
            if len(rows) >= _MINIMUM and np.max(errors) <= self.case.precision:
                break
        pairs = zip(means.tolist(), errors.tolist(), strict=True)
        return {name: Measured(*pair) for name, pair in zip(_NAMES, pairs, strict=True)}


def _kernels(model, analysis):
    """Each kernel with a function that draws it from the law of its initializer.

    What Keras drew when it built the layer has that law's variance too. Without an initializer that
    the layer keeps, it is what tells the variance.
    """
    initializers = {
        key: as_drawn(layer, getattr(layer, attribute))
        for layer in [model, *keras_private.layers_of(model)]
        for key, attribute in keras_private.initializers_of(layer)
    }
    for variable in model.trainable_variables:
        if analysis.context_of(variable) is None:
            continue
        shape = tuple(variable.shape)
        built = np.mean(np.square(ops.convert_to_numpy(variable), dtype=np.float64))
        initializer = initializers.get(
            id(variable), keras.initializers.RandomNormal(0.0, built**0.5)
        )
        draw, variance = _law(initializer, shape)
        error = math.sqrt(2 / math.prod(shape))
        assert abs(built / variance - 1) < 5 * error, (variable.path, built, variance)
        yield variable, draw


def _law(initializer, shape):
    """By NumPy, which is many times faster than Keras's own draws."""
    if isinstance(initializer, keras.initializers.Orthogonal):
        return _orthogonal(shape, initializer.gain)
    if isinstance(initializer, keras.initializers.RandomNormal):
        stddev = initializer.stddev
    else:
        stddev = math.sqrt(initializer.scale / _fan(initializer, shape))
    return lambda rng: stddev * rng.standard_normal(shape), stddev**2


def _fan(initializer, shape):
    """As Keras counts it where the initializer does not know the axes."""
    places = math.prod(shape[:-2])
    fan_in, fan_out = places * shape[-2], places * shape[-1]
    inputs, outputs = (getattr(initializer, f"{n}_axes", None) for n in ("input", "output"))
    if inputs is not None:
        fan_in, fan_out = (math.prod(shape[a] for a in axes) for axes in (inputs, outputs))
    return {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[
        initializer.mode
    ]


def _orthogonal(shape, gain):
    rows, columns = math.prod(shape[:-1]), shape[-1]

    def draw(rng):
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q = q * np.sign(np.diag(r))
        return gain * (q if rows >= columns else q.T).reshape(shape)

    return draw, gain**2 / max(rows, columns)


def _with_tensorflow(first, second):
    import tensorflow as tf

    @tf.function(jit_compile=False, autograph=False)
    def step(inputs, given):
        u = first(inputs[0], training=True)
        with tf.GradientTape() as tape:
            tape.watch(u)
            end = second([u, *inputs[1:]], training=True)
        return u, end, tape.gradient(end, u, output_gradients=given)

    return lambda inputs, given: step([tf.constant(x) for x in inputs], tf.constant(given))


def _with_jax(first, second):
    import jax

    @jax.jit
    def run(states, inputs, given):
        u, own = first.stateless_call(*states[0], inputs[0], training=True)

        def rest(u):
            return second.stateless_call(*states[1], [u, *inputs[1:]], training=True)

        end, back, behind = jax.vjp(rest, u, has_aux=True)
        return (u, end, back(given)[0]), (own, behind)

    def step(inputs, given):
        models = (first, second)
        lists = [(m.trainable_variables, m.non_trainable_variables) for m in models]
        states = [tuple([v.value for v in each] for each in pair) for pair in lists]
        values, updated = run(states, inputs, given)
        for (_, variables), news in zip(lists, updated, strict=True):
            for variable, new in zip(variables, news, strict=True):
                variable.assign(new)
        return values

    return step


def _with_torch(first, second):
    import torch

    def step(inputs, given):
        inputs = [ops.convert_to_tensor(x) for x in inputs]
        with torch.no_grad():
            u = first(inputs[0], training=True)
        u = u.detach().requires_grad_(True)
        with torch.enable_grad():
            end = second([u, *inputs[1:]], training=True)
            (back,) = torch.autograd.grad(end, u, ops.convert_to_tensor(given))
        return [ops.convert_to_numpy(v) for v in (u, end, back)]

    return step


_STEPS = {"tensorflow": _with_tensorflow, "jax": _with_jax, "torch": _with_torch}
