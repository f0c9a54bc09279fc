"""Calling models on data as `fit` does, without side effects."""

import contextlib
import inspect
from collections.abc import Iterator, Sequence

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
from keras_varinit.typing import Function, Layer, Model, Nested, Operation, Tensor


@contextlib.contextmanager
def untouched(model: Model) -> Iterator[None]:
    """Undoes what running the model inside changes: statistics, seeds, losses, names, nodes."""
    layers = [model, *layers_of(model)]
    with (
        leaving_no_trace(layers),
        keeping_names(),
        _keeping_random_state(),
        _float8_as_tensors(layers),
    ):
        yield


@contextlib.contextmanager
def _float8_as_tensors(layers: Sequence[Layer]) -> Iterator[None]:
    """Reads the variables of float8 layers as tensors.

    Keras passes them to `tf.custom_gradient`, which outside a graph takes them for variables that
    the function captures, and demands gradients for them.
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
    """Restores PyTorch's global generator, from which dropout without a seed draws."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def linear(layer: Operation) -> Iterator[None]:
    """Replaces the layer's `activation` by the identity."""
    with shadowed(layer, "activation", keras.activations.linear):
        yield


@contextlib.contextmanager
def replaced_call(layer: Layer, call: Function) -> Iterator[None]:
    """Replaces the layer's `call`."""
    with shadowed(layer, "call", call):
        yield


def takes(layer: Operation, argument: str) -> bool:
    """Whether a layer's `call` has an argument of that name."""
    return argument in inspect.signature(layer.call).parameters


def call_model(model: Model, x: Nested, training: bool) -> Nested:
    """Calls a model on a batch as `fit` does, with `training` if its `call` takes it."""
    kwargs = {"training": training} if takes(model, "training") else {}
    names = [name.removesuffix("_shape") for name in build_shapes(model)]
    if functional_of(model) is None and len(names) > 1:
        if isinstance(x, dict) and set(names) == set(x):
            return model(**x, **kwargs)
        if isinstance(x, list | tuple) and len(x) == len(names):
            return model(*x, **kwargs)
    return model(x, **kwargs)


def flat_inputs(model: Model, x: Nested) -> list[Tensor]:
    """The batch as tensors in the order of the model's inputs, in the dtypes that it computes with.

    Raises:
        ValueError: the structure or a shape does not fit the model.
    """
    functional = functional_of(model)
    if functional is not None:
        return standardized_inputs(functional, x)
    names = [name.removesuffix("_shape") for name in build_shapes(model)]
    if isinstance(x, dict) and len(names) > 1 and set(names) == set(x):
        x = [x[name] for name in names]
    policy = model.dtype_policy
    return [policy.convert_input(t, model.autocast, model.input_dtype) for t in _flat_tensors(x)]


def _flat_tensors(x: Nested) -> list[Tensor]:
    return [keras.ops.convert_to_tensor(t) for t in keras.tree.flatten(x)]


def input_shapes(model: Model) -> list[tuple[str, tuple[int | None, ...]]]:
    """Name and shape of each input; empty if Keras does not record them."""
    functional = functional_of(model)
    if functional is None:
        return []
    return [(str(t.name), tuple(t.shape)) for t in functional.inputs]


def build_loss(function: Function, targets: Nested, outputs: Nested, sample_weight: Nested) -> None:
    """Calls a loss of `new_loss` once, outside any scope, so that it can create its variables."""
    with keeping_names():
        function(targets, outputs, sample_weight)
