"""Signals and gradients of one batch on each backend, as summaries on the host.

The gradients of all signals come from one backward pass. TensorFlow and PyTorch differentiate with
respect to intermediate tensors. JAX only differentiates with respect to arguments, so there every
signal goes through an identity whose backward rule returns the summary of the gradient as the
gradient of an unused argument, the slot; this needs no second copy of the activations.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator

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
from keras_varinit.typing import AnyArray, ArrayLike, Function, Nested, Tensor

Vector = npt.NDArray[np.float32]

Mark = Callable[[str, ArrayLike], ArrayLike]


class Tap:
    """An observer that keeps the signals of one run, and the inputs and outputs of activations.

    Args:
        mark: Called with the name and the tensor of each signal; returns the tensor to continue
            with, which is the one to differentiate with respect to.
    """

    def __init__(self, mark: Mark = lambda name, tensor: tensor) -> None:
        self.mark = mark
        self.points: dict[str, Point] = {}
        self.signals: dict[str, Tensor] = {}
        self.marked: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}

    def signal(self, point: Point, tensor: Tensor) -> Tensor:
        """Keeps a floating-point tensor."""
        self.points.setdefault(point.name, point)
        if not _is_float(tensor) or 0 in tuple(tensor.shape):
            return tensor
        self.signals[point.name] = tensor
        self.marked[point.name] = self.mark(point.name, tensor)
        return self.marked[point.name]

    def activation(self, point: Point, before: Tensor, after: Tensor) -> None:
        """Keeps the input and the output of an activation function."""
        self.before[point.name] = before
        self.after[point.name] = after

    def logits_of(self, output: Tensor) -> Tensor:
        """The input of the softmax or sigmoid that gave an output, or else the output itself."""
        for name, after in self.after.items():
            if after is output and self.points[name].belongs_to_the_loss:
                return self.before[name]
        return output


Run = Callable[[Tap], list[Tensor]]

Loss = Callable[[list[Tensor], Tap], ArrayLike]


def _is_float(tensor: Tensor) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)))


class Summaries:
    """Results of one batch, by point: vectors of `summarize` and `count_flat`, sizes and shapes."""

    def __init__(self) -> None:
        self.points: dict[str, Point] = {}
        self.forward: dict[str, Vector] = {}
        self.backward: dict[str, Vector] = {}
        self.output: dict[str, Vector] = {}
        self.flat: dict[str, Vector] = {}
        self.sizes: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}


def summaries_of(
    run: Run,
    loss: Loss | None,
    scales: dict[tuple[str, str], float],
    names: list[str],
) -> Summaries:
    """Runs a model forward and backward on a batch.

    Args:
        run: Runs the model with an observer; returns its outputs, flat.
        loss: The scalar to differentiate, from the outputs and the observer; None for no gradients.
        scales: The units of the histograms, by kind ("forward", "backward", "output") and point.
        names: The points whose gradients to compute.
    """

    def scale_of(kind: str, name: str) -> float:
        return scales.get((kind, name), 0.0)

    differentiate = _BACKENDS[keras.backend.backend()]
    tap, backward = differentiate(run, loss, lambda name: scale_of("backward", name), names)
    summaries = Summaries()
    summaries.points = tap.points
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
                flat[name] = _compiled(count_flat, static=2)(before, bounds, point.channel_axis)
                summaries.sizes.setdefault(name, math.prod(tuple(before.shape)))
        summaries.shapes = {n: tuple(t.shape)[1:] for n, t in tap.signals.items()}
        summaries.sizes.update({n: math.prod(tuple(t.shape)) for n, t in tap.signals.items()})
        summaries.forward = _to_host(forward)
        summaries.backward = _to_host(backward)
        summaries.output = _to_host(output)
        summaries.flat = {n: _as_numpy(v) for n, v in flat.items()}
    return summaries


def _summary(tensor: Tensor, scale: float) -> ArrayLike:
    stride = stride_for(tuple(int(n) for n in tensor.shape))
    values = _in_host_memory(tensor)
    if values is not None:
        return summarize_on_host(values, scale, stride)
    return _summarizer()(tensor, np.float32(scale), stride)


def _in_host_memory(tensor: ArrayLike) -> AnyArray | None:
    """The entries of a tensor on a CPU, without a copy; None if it is on another device.

    On a CPU, NumPy is faster than many small operations of a backend, and JAX would compile each of
    them for every shape.
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


def _to_host(vectors: dict[str, ArrayLike]) -> dict[str, Vector]:
    """Copies all vectors at once, so that an accelerator is waited for only once."""
    on_host = {name: v for name, v in vectors.items() if isinstance(v, np.ndarray)}
    on_device = {name: v for name, v in vectors.items() if name not in on_host}
    if on_device:
        stacked = _as_numpy(keras.ops.stack(list(on_device.values())))
        on_host.update(zip(on_device, stacked, strict=True))
    return on_host


def _as_numpy(tensor: ArrayLike) -> Vector:
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float32)


@functools.cache
def _compiled(function: Function, static: int) -> Function:
    """Compiles a function on JAX, where its operations would otherwise be compiled one by one."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    compiled: Function = jax.jit(function, static_argnums=static)
    return compiled


@functools.cache
def _summarizer() -> Function:
    """`summarize`, compiled on TensorFlow and JAX."""
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
    # Flattened first, so that one compilation serves all shapes of the same size.
    return lambda t, scale, stride: compiled(keras.ops.reshape(t, (-1,)), scale, stride)


@contextlib.contextmanager
def no_gradients() -> Iterator[None]:
    """Disables PyTorch's recording of gradients."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.no_grad():
        yield


_Result = tuple[Tap, dict[str, ArrayLike]]


def _tensorflow(
    run: Run,
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

        def mark(name: str, tensor: ArrayLike) -> ArrayLike:
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
    run: Run,
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

    def mark(name: str, tensor: ArrayLike) -> ArrayLike:
        # A tensor with nothing trainable before it is not part of an autograd graph yet.
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
def _probe() -> Function:
    """The identity whose backward rule returns a summary as the gradient of `slot`."""
    import jax

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def probe(tensor: ArrayLike, slot: ArrayLike, scale: float) -> ArrayLike:
        return tensor

    def forward(tensor: ArrayLike, slot: ArrayLike, scale: float) -> tuple[ArrayLike, None]:
        return tensor, None

    def backward(scale: float, _: None, gradient: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
        return gradient, jax.numpy.asarray(_summary(gradient, scale))

    probe.defvjp(forward, backward)
    typed: Function = probe
    return typed


def _jax(
    run: Run,
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
    taps: list[Tap] = []

    def differentiated(slots: dict[str, ArrayLike]) -> tuple[ArrayLike, Nested]:
        def mark(name: str, tensor: ArrayLike) -> ArrayLike:
            if name not in slots:
                return tensor
            return _probe()(tensor, slots[name], scale_of(name))

        tap = Tap(mark)
        value = loss(run(tap), tap)
        taps.append(tap)
        return value, (tap.signals, tap.before, tap.after)

    slots = {name: jnp.zeros((LENGTH,), jnp.float32) for name in names}
    value, pullback, concrete = jax.vjp(differentiated, slots, has_aux=True)
    (vectors,) = pullback(jnp.ones_like(value))
    tap = taps[-1]
    tap.signals, tap.before, tap.after = concrete
    return tap, {name: vectors[name] for name in names if name in tap.signals}


_BACKENDS: dict[str, Callable[..., _Result]] = {
    "tensorflow": _tensorflow,
    "torch": _torch,
    "jax": _jax,
}
