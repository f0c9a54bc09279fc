"""Signals and gradients of one batch on each backend, as summaries on the host.

The gradient of every signal comes from one backward pass. TensorFlow and PyTorch give gradients of
intermediate tensors. JAX differentiates functions of their arguments, so there every signal goes
through an identity whose backward rule hands the summary of what passes to an argument that it
never read; no second copy of the activations is needed for it.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_varinit.running.points import Point
from keras_varinit.running.statistics import (
    LENGTH,
    count_flat,
    flat_parts,
    stride_for,
    summarize,
    summarize_on_host,
)

Vector = npt.NDArray[np.float32]


class Tap:
    """A recorder that keeps the signals of one run, and the inputs of activation functions."""

    def __init__(self, mark: Callable[[str, Any], Any] = lambda name, tensor: tensor) -> None:
        self.mark = mark
        self.points: dict[str, Point] = {}
        self.signals: dict[str, Any] = {}
        self.marked: dict[str, Any] = {}
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}

    def signal(self, point: Point, tensor: Any) -> Any:
        """Keeps a tensor of floats."""
        self.points.setdefault(point.name, point)
        if not _is_float(tensor) or 0 in tuple(tensor.shape):
            return tensor
        self.signals[point.name] = tensor
        self.marked[point.name] = self.mark(point.name, tensor)
        return self.marked[point.name]

    def activation(self, point: Point, before: Any, after: Any) -> None:
        """Keeps the input and the output of an activation function."""
        self.before[point.name] = before
        self.after[point.name] = after

    def in_front_of_loss(self, output: Any) -> Any:
        """What a softmax or sigmoid made an output of the model of, or the output itself."""
        for name, after in self.after.items():
            if after is output and self.points[name].belongs_to_the_loss:
                return self.before[name]
        return output


Loss = Callable[[list[Any], Tap], Any]


def _is_float(tensor: Any) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)))


class Summaries:
    """What one batch gives: by point, vectors of `summarize` and `count_flat`, and sizes."""

    def __init__(self) -> None:
        self.points: dict[str, Point] = {}
        self.forward: dict[str, Vector] = {}
        self.backward: dict[str, Vector] = {}
        self.output: dict[str, Vector] = {}
        self.flat: dict[str, Vector] = {}
        self.sizes: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}


def summaries_of(
    run: Callable[[Tap], list[Any]],
    loss: Loss | None,
    scales: dict[tuple[str, str], float],
    names: list[str],
) -> Summaries:
    """Runs a model forward and back on a batch.

    Args:
        run: Runs it, given the recorder.
        loss: The scalar to differentiate, of the outputs and the recorder; None for no gradients.
        scales: The units of the histograms, by kind ("forward", "backward", "output") and point.
        names: The points whose gradients are wanted.
    """

    def scale_of(kind: str, name: str) -> float:
        return scales.get((kind, name), 0.0)

    differentiate = _BACKENDS[keras.backend.backend()]
    tap, backward = differentiate(run, loss, lambda name: scale_of("backward", name), names)
    found = Summaries()
    found.points = tap.points
    with no_gradients():
        forward = {n: _summary(t, scale_of("forward", n)) for n, t in tap.signals.items()}
        output, flat = {}, {}
        for name, before in tap.before.items():
            point = tap.points[name]
            if point.splits and _is_float(tap.after[name]):
                output[name] = _summary(tap.after[name], scale_of("output", name))
            function = point.function if point.is_elementwise else None
            if function is not None and len(before.shape) > 1 and _is_float(before):
                parts = flat_parts(function)
                ends = (parts.low, parts.high, parts.constant_low, parts.constant_high)
                bounds = np.asarray(ends, np.float32)
                counted = _compiled(count_flat, static=2)(before, bounds, point.channel_axis)
                flat[name] = counted
                found.sizes.setdefault(name, math.prod(tuple(before.shape)))
        found.shapes = {n: tuple(t.shape)[1:] for n, t in tap.signals.items()}
        found.sizes.update({n: math.prod(tuple(t.shape)) for n, t in tap.signals.items()})
        found.forward = _to_host(forward)
        found.backward = _to_host(backward)
        found.output = _to_host(output)
        found.flat = {n: _as_numpy(v) for n, v in flat.items()}
    return found


def _summary(tensor: Any, scale: float) -> Any:
    stride = stride_for(tuple(int(n) for n in tensor.shape))
    values = _in_host_memory(tensor)
    if values is not None:
        return summarize_on_host(values, scale, stride)
    return _summarizer()(tensor, np.float32(scale), stride)


def _in_host_memory(tensor: Any) -> Any | None:
    """The entries of a tensor on a CPU, without a copy; None of one that is elsewhere.

    There NumPy is faster than many small operations of a backend, which on JAX would each be
    compiled for every shape.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        return tensor.detach().float().numpy() if tensor.device.type == "cpu" else None
    if backend == "tensorflow":
        return tensor.numpy() if "CPU" in tensor.device else None
    import jax

    if isinstance(tensor, jax.core.Tracer):
        return None
    return np.asarray(tensor) if all(d.platform == "cpu" for d in tensor.devices()) else None


def _to_host(vectors: dict[str, Any]) -> dict[str, Vector]:
    """All in one copy, which on an accelerator is one wait."""
    found = {name: v for name, v in vectors.items() if isinstance(v, np.ndarray)}
    elsewhere = {name: v for name, v in vectors.items() if name not in found}
    if elsewhere:
        stacked = _as_numpy(keras.ops.stack(list(elsewhere.values())))
        found.update(zip(elsewhere, stacked, strict=True))
    return found


def _as_numpy(tensor: Any) -> Vector:
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float32)


@functools.cache
def _compiled(function: Callable[..., Any], static: int) -> Callable[..., Any]:
    """On JAX compiled, so that small steps do not each compile alone."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    compiled: Callable[..., Any] = jax.jit(function, static_argnums=static)
    return compiled


@functools.cache
def _summarizer() -> Callable[..., Any]:
    """`summarize`, compiled where that saves time."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        traced = tf.function(
            summarize,
            input_signature=[
                tf.TensorSpec([None], tf.float32),
                tf.TensorSpec([], tf.float32),
                tf.TensorSpec([], tf.int32),
            ],
        )
        return lambda t, scale, stride: traced(
            tf.reshape(tf.cast(t, tf.float32), [-1]), scale, stride
        )
    compiled = _compiled(summarize, static=2)
    # One compilation serves all shapes of a size.
    return lambda t, scale, stride: compiled(keras.ops.reshape(t, (-1,)), scale, stride)


@contextlib.contextmanager
def no_gradients() -> Iterator[None]:
    """PyTorch records nothing in it that would serve to differentiate."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.no_grad():
        yield


_Result = tuple[Tap, dict[str, Any]]


def _tensorflow(
    run: Callable[[Tap], list[Any]],
    loss: Loss | None,
    scale_of: Callable[[str], float],
    names: list[str],
) -> _Result:
    import tensorflow as tf

    if loss is None:
        tap = Tap()
        run(tap)
        return tap, {}
    with tf.GradientTape(watch_accessed_variables=False) as tape:

        def mark(name: str, tensor: Any) -> Any:
            if name in names:
                tape.watch(tensor)
            return tensor

        tap = Tap(mark)
        value = loss(run(tap), tap)
    names = [name for name in names if name in tap.marked]
    gradients = tape.gradient(
        value, [tap.marked[n] for n in names], unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return tap, {
        name: _summary(tf.convert_to_tensor(gradient), scale_of(name))
        for name, gradient in zip(names, gradients, strict=True)
    }


def _torch(
    run: Callable[[Tap], list[Any]],
    loss: Loss | None,
    scale_of: Callable[[str], float],
    names: list[str],
) -> _Result:
    import torch

    if loss is None:
        tap = Tap()
        with torch.no_grad():
            run(tap)
        return tap, {}

    def mark(name: str, tensor: Any) -> Any:
        # Where nothing before it is trainable, a tensor is not part of any graph yet.
        return tensor if tensor.requires_grad else tensor.detach().requires_grad_()

    with torch.enable_grad():
        tap = Tap(mark)
        value = loss(run(tap), tap)
        names = [name for name in names if name in tap.marked]
        gradients = (
            torch.autograd.grad(value, [tap.marked[n] for n in names], allow_unused=True)
            if value.requires_grad and names
            else [None] * len(names)
        )
    summaries = {}
    with torch.no_grad():
        for name, gradient in zip(names, gradients, strict=True):
            gradient = torch.zeros_like(tap.marked[name]) if gradient is None else gradient
            summaries[name] = _summary(gradient, scale_of(name))
    return tap, summaries


@functools.cache
def _probe() -> Callable[..., Any]:
    """The identity, for JAX; see above."""
    import jax

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def probe(tensor: Any, slot: Any, scale: float) -> Any:
        return tensor

    def forward(tensor: Any, slot: Any, scale: float) -> Any:
        return tensor, None

    def backward(scale: float, _: Any, gradient: Any) -> Any:
        return gradient, jax.numpy.asarray(_summary(gradient, scale))

    probe.defvjp(forward, backward)
    made: Callable[..., Any] = probe
    return made


def _jax(
    run: Callable[[Tap], list[Any]],
    loss: Loss | None,
    scale_of: Callable[[str], float],
    names: list[str],
) -> _Result:
    import jax
    import jax.numpy as jnp

    if loss is None:
        tap = Tap()
        run(tap)
        return tap, {}
    kept: dict[str, Any] = {}

    def differentiated(slots: dict[str, Any]) -> Any:
        def mark(name: str, tensor: Any) -> Any:
            if name not in slots:
                return tensor
            return _probe()(tensor, slots[name], scale_of(name))

        tap = Tap(mark)
        value = loss(run(tap), tap)
        kept["tap"] = tap
        return value, (tap.signals, tap.before, tap.after)

    slots = {name: jnp.zeros((LENGTH,), jnp.float32) for name in names}
    value, pullback, concrete = jax.vjp(differentiated, slots, has_aux=True)
    (found,) = pullback(jnp.ones_like(value))
    tap = kept["tap"]
    tap.signals, tap.before, tap.after = concrete
    return tap, {name: found[name] for name in names if name in tap.signals}


_BACKENDS: dict[str, Callable[..., _Result]] = {
    "tensorflow": _tensorflow,
    "torch": _torch,
    "jax": _jax,
}
