"""Measures the output and the gradient of every kernel in a model, over many draws of all kernels.

It runs the model itself and looks in where Keras calls a layer, so it does not depend on the
library's reading of the model: what stands inside a layer that cannot be opened is measured too.
The kernels are drawn as normal numbers of the standard deviation that `kv.initialize` reports, and
the model is compiled once for all draws. Gradients are those behind white noise at the outputs, in
front of a sigmoid or softmax that ends the model, as `kv.analyze` says.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

import keras_varinit as kv

L = keras.layers
# Of these Keras's own `call` gives a kernel's output, then applies `activation`.
_WITH_KERNEL = (
    L.Dense,
    L.EinsumDense,
    *(getattr(L, f"Conv{n}D{end}") for n in (1, 2, 3) for end in ("", "Transpose")),
    *(getattr(L, f"{kind}Conv{n}D") for n in (1, 2) for kind in ("Depthwise", "Separable")),
    L.Embedding,
)
_OF_THE_LOSS = (keras.activations.sigmoid, keras.activations.softmax)
_KERNELS = ("kernel", "pointwise_kernel", "embeddings")
Data = Callable[[np.random.Generator, int], Any]
Call = tuple[str, int]  # a kernel's path, and of how many examples' losses its gradient is the sum


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel: second moments of its output and of the gradient there, and their errors."""

    path: str
    predicted_forward: float | None
    forward: float
    forward_error: float
    predicted_backward: float | None
    backward: float
    backward_error: float

    @property
    def forward_ratio(self) -> float:
        """Predicted ÷ measured; NaN where nothing is predicted."""
        return _ratio(self.predicted_forward, self.forward)

    @property
    def backward_ratio(self) -> float:
        """The same of the gradient."""
        return _ratio(self.predicted_backward, self.backward)


def _ratio(predicted: float | None, measured: float) -> float:
    if predicted is None:
        return math.nan
    if measured == 0:
        return 1.0 if predicted == 0 else math.inf
    return predicted / measured


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A network: its measured kernels, how many of all that is, and what `analyze` notes."""

    kernels: tuple[Kernel, ...]
    all_kernels: int
    draws: int
    notes: tuple[str, ...]

    def worst(self, direction: str, certain: float = 0.12) -> tuple[float, str]:
        """The ratio farthest from 1 where the mean is certain, and its kernel; NaN without one."""
        ratios = [
            (getattr(k, f"{direction}_ratio"), k.path)
            for k in self.kernels
            if getattr(k, f"{direction}_error") <= certain
            and not math.isnan(getattr(k, f"{direction}_ratio"))
        ]
        return max(ratios, key=lambda r: _distance(r[0]), default=(math.nan, ""))

    def unknown(self, direction: str) -> int:
        """How many of the measured kernels have no prediction."""
        return sum(getattr(k, f"predicted_{direction}") is None for k in self.kernels)

    def certain(self, direction: str, certain: float = 0.12) -> int:
        """How many means are certain."""
        return sum(getattr(k, f"{direction}_error") <= certain for k in self.kernels)


def _distance(ratio: float) -> float:
    return abs(math.log(ratio)) if ratio > 0 else math.inf


def compare(
    model: keras.Model,
    data: Data | None = None,
    *,
    scheme: Any = "lecun_normal",
    draws: int = 200,
    least: int = 24,
    error: float = 0.03,
    examples: int = 16,
    seed: int = 0,
    mean: float = 0.0,
    deviation: float = 1.0,
    compiled: bool = True,
    show: Callable[[int], None] = lambda draw: None,
) -> Comparison:
    """Draws, measures and compares with `kv.analyze`.

    Args:
        model: A built model. It keeps the last draw.
        data: Gives inputs, from a random generator and a number of examples; white noise for the
            model's inputs if None.
        scheme: For `kv.initialize`, before everything is read.
        draws: At most so many.
        least: At least so many.
        error: The relative standard error at which to stop.
        examples: Inputs per draw.
        seed: Of kernels, inputs and gradients.
        mean: Of the inputs, as `kv.analyze` is told.
        deviation: Their standard deviation.
        compiled: Whether to compile the model; it is run eagerly if not.
        show: Called after each draw with its number.
    """
    report = kv.initialize(model, scheme, seed=seed)
    analysis = kv.analyze(model, input_mean=mean, input_variance=deviation**2)
    paths = {
        id(v): analysis.context_of(v).path
        for v in model.weights
        if analysis.context_of(v) is not None
    }
    deviations = _deviations(model, paths, report)
    rng = np.random.default_rng(seed)
    data = data or white_noise(model, mean, deviation)
    meter = Meter(model, paths, compiled)
    found: list[Any] = []
    for draw in range(draws):
        for variable, stddev in deviations:
            values = rng.standard_normal(variable.shape, np.float32)
            variable.assign(values * np.float32(stddev))
        found.append(meter.measure(data(rng, examples), rng))
        show(draw + 1)
        if len(found) >= least and np.nanmax(_errors(np.array(found))) <= error:
            break
    values = np.array(found, np.float64)
    means, errors = values.mean(axis=0), _errors(values)
    predicted = analysis.predicted
    kernels = tuple(
        Kernel(
            path,
            predicted[path].forward,
            float(means[0, i]),
            float(errors[0, i]),
            predicted[path].backward,
            float(means[1, i]),
            float(errors[1, i]),
        )
        for i, path in enumerate(meter.paths)
    )
    return Comparison(kernels, len(analysis.contexts), len(found), analysis.notes)


def _errors(values: Any) -> Any:
    """Relative standard errors of the means over draws; 0 of what is always 0."""
    means = values.mean(axis=0)
    deviation = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return np.divide(deviation, means, out=np.zeros_like(means), where=means > 0)


def _deviations(model: keras.Model, paths: dict[int, str], report: Any) -> list[tuple[Any, float]]:
    """The variables that `initialize` drew, each with its standard deviation."""
    rows = {row.path: row for row in report.drawn if row.stddev is not None}
    found = [(variable, rows.get(paths.get(id(variable), ""))) for variable in model.weights]
    return [(variable, row.stddev) for variable, row in found if row is not None]


def white_noise(model: keras.Model, mean: float = 0.0, deviation: float = 1.0) -> Data:
    """White noise for every input of a model; its shapes must be known but for the batch."""

    def data(rng: np.random.Generator, count: int) -> Any:
        shapes = [(count, *t.shape[1:]) for t in model.inputs]
        arrays = [
            np.float32(mean) + np.float32(deviation) * rng.standard_normal(s, np.float32)
            for s in shapes
        ]
        return arrays[0] if len(arrays) == 1 else arrays

    return data


class Meter:
    """Runs a model and gives the mean squares of kernels' outputs and of their gradients."""

    def __init__(self, model: keras.Model, paths: dict[int, str], compiled: bool) -> None:
        self.model, self._by_variable = model, paths
        self.paths: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.examples = 0
        self._logits: list[tuple[Any, Any]] = []  # outputs of sigmoid or softmax, and their inputs
        self._step = _STEPS[keras.backend.backend()](self, compiled)

    def measure(self, x: Any, rng: np.random.Generator) -> Any:
        """One draw: an array (2, kernels), forward and backward, at the first call of each."""
        x = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
        self.examples = int(keras.tree.flatten(x)[0].shape[0])
        if not self.shapes:
            outputs = self.model(x, training=True)
            self.shapes = [tuple(t.shape) for t in _floats(outputs)]
        noise = [rng.standard_normal(shape, np.float32) for shape in self.shapes]
        calls, forward, backward = self._step(x, noise)
        self.paths = list(dict.fromkeys(path for path, _ in calls))
        first: dict[str, tuple[float, float]] = {}
        for (path, examples), ahead, back in zip(calls, forward, backward, strict=True):
            first.setdefault(path, (ahead, back / examples))
        return np.array([first[path] for path in self.paths]).T

    @contextlib.contextmanager
    def tapped(self, tap: Callable[[Call, Any], Any]) -> Iterator[None]:
        """Passes the output of every kernel through `tap`, in front of the activation.

        `tap` gets the kernel's path, and of how many examples' losses the gradient there is the
        sum: all of the batch where one signal serves them all, as embedded positions do.
        """
        original = keras.Layer.__call__

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            path = self._path_of(layer)
            activation = getattr(layer, "activation", None)
            if path is None:
                output = original(layer, *args, **kwargs)
                if isinstance(layer, L.Softmax) or activation in _OF_THE_LOSS:
                    self._logits.append((output, args[0] if args else None))
                return output
            if activation is not None:
                layer.activation = keras.activations.linear
            try:
                output = original(layer, *args, **kwargs)
                output = tap((path, self._sharing(layer, output)), output)
            finally:
                if activation is not None:
                    layer.activation = activation
            if activation is None:
                return output
            activated = activation(output)
            if activation in _OF_THE_LOSS:
                self._logits.append((activated, output))
            return activated

        self._logits.clear()
        keras.Layer.__call__ = call
        try:
            yield
        finally:
            keras.Layer.__call__ = original

    def loss(self, outputs: Any, noise: list[Any]) -> Any:
        """Whose gradient is the noise at every output, or at its logits where it has some."""
        total: Any = 0.0
        for output, n in zip(_floats(outputs), noise, strict=True):
            logits = next((z for after, z in self._logits if after is output), None)
            signal = output if logits is None else logits
            total = total + keras.ops.sum(keras.ops.cast(signal, "float32") * n)
        return total

    def _sharing(self, layer: Any, output: Any) -> int:
        rows, vectors = int(output.shape[0] or self.examples), len(output.shape) == 2
        if isinstance(layer, L.Embedding) and vectors:
            return 1 if rows == self.examples else self.examples
        return 1 if rows % self.examples == 0 else self.examples

    def _path_of(self, layer: Any) -> str | None:
        if not isinstance(layer, _WITH_KERNEL):
            return None
        kernels = (id(getattr(layer, name, None)) for name in _KERNELS)
        return next((self._by_variable[k] for k in kernels if k in self._by_variable), None)


def _floats(outputs: Any) -> list[Any]:
    leaves = [t for t in keras.tree.flatten(outputs) if t is not None]
    kinds = [keras.backend.standardize_dtype(t.dtype) for t in leaves]
    return [t for t, k in zip(leaves, kinds, strict=True) if keras.backend.is_float_dtype(k)]


def _mean_square(tensor: Any) -> Any:
    return keras.ops.mean(keras.ops.square(keras.ops.cast(tensor, "float32")))


def _with_tensorflow(meter: Meter, compiled: bool) -> Callable[..., Any]:
    import tensorflow as tf

    calls: list[Call] = []

    def step(x: Any, noise: list[Any]) -> Any:
        calls.clear()
        signals: list[Any] = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def tap(call: Call, tensor: Any) -> Any:
                tape.watch(tensor)
                calls.append(call)
                signals.append(tensor)
                return tensor

            with meter.tapped(tap):
                outputs = meter.model(x, training=True)
            value = meter.loss(outputs, noise)
        gradients = tape.gradient(
            value, signals, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        return [_mean_square(s) for s in signals], [_mean_square(g) for g in gradients]

    function = tf.function(step, autograph=False) if compiled else step

    def run(x: Any, noise: list[Any]) -> Any:
        forward, backward = function(x, [tf.constant(n) for n in noise])
        return list(calls), np.array(forward), np.array(backward)

    return run


def _with_torch(meter: Meter, compiled: bool) -> Callable[..., Any]:
    import torch

    def run(x: Any, noise: list[Any]) -> Any:
        calls: list[Call] = []
        signals: list[Any] = []

        def tap(call: Call, tensor: Any) -> Any:
            tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            calls.append(call)
            signals.append(tensor)
            return tensor

        with torch.enable_grad(), meter.tapped(tap):
            outputs = meter.model(x, training=True)
            value = meter.loss(outputs, [torch.as_tensor(n) for n in noise])
            gradients = torch.autograd.grad(value, signals, allow_unused=True)
        with torch.no_grad():
            forward = [float(_mean_square(s)) for s in signals]
            backward = [0.0 if g is None else float(_mean_square(g)) for g in gradients]
        return calls, np.array(forward), np.array(backward)

    return run


def _with_jax(meter: Meter, compiled: bool) -> Callable[..., Any]:
    """The gradient at a signal is that of a zero added to it."""
    import jax
    import jax.numpy as jnp

    model = meter.model
    calls: list[Call] = []

    def forward(zeros: Any, states: Any, x: Any, noise: list[Any]) -> Any:
        calls.clear()
        signals: list[Any] = []

        def tap(call: Call, tensor: Any) -> Any:
            tensor = tensor if zeros is None else tensor + zeros[len(signals)]
            calls.append(call)
            signals.append(tensor)
            return tensor

        with meter.tapped(tap):
            outputs, _ = model.stateless_call(*states, x, training=True)
        return meter.loss(outputs, noise), signals

    def step(zeros: Any, states: Any, x: Any, noise: list[Any]) -> Any:
        gradients, signals = jax.grad(forward, has_aux=True)(zeros, states, x, noise)
        return [_mean_square(s) for s in signals], [_mean_square(g) for g in gradients]

    function = jax.jit(step) if compiled else step
    zeros: list[Any] = []

    def run(x: Any, noise: list[Any]) -> Any:
        lists = (model.trainable_variables, model.non_trainable_variables)
        states = tuple([v.value for v in each] for each in lists)
        if not zeros:
            _, signals = jax.eval_shape(lambda *a: forward(None, *a), states, x, noise)
            zeros.extend(jnp.zeros(s.shape, s.dtype) for s in signals)
        ahead, back = function(zeros, states, x, noise)
        return list(calls), np.array(ahead), np.array(back)

    return run


_STEPS = {"tensorflow": _with_tensorflow, "jax": _with_jax, "torch": _with_torch}
