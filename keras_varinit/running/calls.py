"""Running models on data: calls that leave no trace, inputs as `fit` gives them."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_varinit.keras_private import (
    build_shapes,
    functional_of,
    keeping_names,
    layers_of,
    own_variables,
    standardized_inputs,
)
from keras_varinit.tensors import snapshot
from keras_varinit.tracing.isolation import leaving_no_trace, shadowed


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Runs of the model in it change nothing of it: no statistic, seed, loss, counter, record."""
    layers = [model, *layers_of(model)]
    with (
        leaving_no_trace(layers),
        keeping_names(),
        _keeping_random_state(),
        _float8_as_tensors(layers),
    ):
        yield


@contextlib.contextmanager
def _float8_as_tensors(layers: Sequence[Any]) -> Iterator[None]:
    """The variables of float8 layers are read as tensors.

    Keras hands them to `tf.custom_gradient`, which outside a graph takes them for variables that
    the function uses beside its arguments, and wants gradients of them from Keras.
    """
    quantized = [each for each in layers if getattr(each, "quantization_mode", None) == "float8"]
    if keras.backend.backend() != "tensorflow" or not quantized:
        yield
        return
    values = [(v, snapshot(v)) for layer in quantized for v in own_variables(layer)]
    with keras.StatelessScope(state_mapping=values):
        yield


@contextlib.contextmanager
def _keeping_random_state() -> Iterator[None]:
    """On PyTorch, dropout without a seed draws from the process's own generator."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def linear(layer: Any) -> Iterator[None]:
    """The layer without its `activation`."""
    with shadowed(layer, "activation", keras.activations.linear):
        yield


@contextlib.contextmanager
def replaced_call(layer: Any, call: Callable[..., Any]) -> Iterator[None]:
    """The layer with another function in place of its `call`."""
    with shadowed(layer, "call", call):
        yield


def takes(layer: Any, argument: str) -> bool:
    """Whether a layer's `call` has an argument of that name."""
    return argument in inspect.signature(layer.call).parameters


def call_model(model: Any, x: Any, training: bool) -> Any:
    """What `fit` does with a batch: `training` is passed where `call` takes it."""
    kwargs = {"training": training} if takes(model, "training") else {}
    names = [name.removesuffix("_shape") for name in build_shapes(model)]
    if functional_of(model) is None and len(names) > 1:
        if isinstance(x, dict) and set(names) == set(x):
            return model(**x, **kwargs)
        if isinstance(x, list | tuple) and len(x) == len(names):
            return model(*x, **kwargs)
    return model(x, **kwargs)


def flat_inputs(model: Any, x: Any) -> list[Any]:
    """The batch as tensors in the order of the model's inputs, of the types they are called with.

    Raises:
        ValueError: the structure or a shape is not what the model takes.
    """
    functional = functional_of(model)
    if functional is not None:
        return standardized_inputs(functional, x)
    names = [name.removesuffix("_shape") for name in build_shapes(model)]
    if isinstance(x, dict) and len(names) > 1 and set(names) == set(x):
        x = [x[name] for name in names]
    policy = model.dtype_policy
    return [policy.convert_input(t, model.autocast, model.input_dtype) for t in _flat_tensors(x)]


def _flat_tensors(x: Any) -> list[Any]:
    return [keras.ops.convert_to_tensor(t) for t in keras.tree.flatten(x)]


def input_shapes(model: Any) -> list[tuple[str, tuple[int | None, ...]]]:
    """Name and shape of each input, where Keras records them."""
    functional = functional_of(model)
    if functional is None:
        return []
    return [(str(t.name), tuple(t.shape)) for t in functional.inputs]


def build_loss(function: Any, targets: Any, outputs: Any, sample_weight: Any) -> None:
    """Calls a loss of `new_loss` once outside any scope, where it may make its variables."""
    with keeping_names():
        function(targets, outputs, sample_weight)
