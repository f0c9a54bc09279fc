"""Access to Keras for running models on data: the second file that touches private fields.

`graph.py` reads what a model is; this file is for what happens in a call: masks, inputs, losses.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.trainers.compile_utils import CompileLoss

from keras_varinit.graph import (
    build_shapes,
    functional_of,
    keeping_names,
    layers_of,
    leaving_no_trace,
    shadowed,
)


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Runs of the model in it change nothing of it: no statistic, seed, loss, counter, record."""
    with leaving_no_trace([model, *layers_of(model)]), keeping_names(), _keeping_random_state():
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


def with_mask_of(tensor: Any, source: Any) -> Any:
    """The tensor, carrying the Keras mask that `source` carries."""
    mask = get_keras_mask(source)
    if mask is not None and tensor is not source:
        set_keras_mask(tensor, mask)
    return tensor


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
        return list(functional._standardize_inputs(x))
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


def new_loss(model: Any, loss: Any = None) -> Callable[..., Any] | None:
    """A fresh copy of the model's compiled loss, or `loss` for this model's outputs.

    Returns:
        A function of targets, outputs and sample weights, of which no metric is recorded in the
        model; None where there is no loss.
    """
    compiled = getattr(model, "_compile_loss", None)
    weights, names = None, getattr(model, "output_names", None)
    if loss is None:
        if compiled is None:
            return None
        loss, weights = compiled._user_loss, compiled._user_loss_weights
    with keeping_names():
        function: Callable[..., Any] = CompileLoss(loss, weights, output_names=names)
    return function


def build_loss(function: Any, targets: Any, outputs: Any, sample_weight: Any) -> None:
    """Calls a loss of `new_loss` once outside any scope, where it may make its variables."""
    with keeping_names():
        function(targets, outputs, sample_weight)


def sums_over_batch(function: Any) -> bool:
    """Whether a built loss of `new_loss` sums over the examples instead of averaging."""
    losses = [entry.loss for entry in function._flat_losses]
    return all(getattr(loss, "reduction", None) == "sum" for loss in losses)
