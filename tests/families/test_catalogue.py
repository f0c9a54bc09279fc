"""Every operation of `keras.ops` and every layer of `keras.layers` is in the engine's catalogue."""

import importlib
import inspect
import pkgutil

import keras
import pytest
from keras.src import ops as modules
from keras.src.ops.operation import Operation

from keras_varinit.families import catalogue, identity
from keras_varinit.signals import registry

pytestmark = pytest.mark.once


def operations():
    """The classes of operations in Keras's modules, by name."""
    found = {}
    names = [f"keras.src.ops.{module.name}" for module in pkgutil.iter_modules(modules.__path__)]
    for name in [*names, "keras.src.activations.activations"]:
        if not name.endswith("_test"):
            members = vars(importlib.import_module(name))
            found |= {n: c for n, c in members.items() if inspect.isclass(c)}
    return {
        name: cls
        for name, cls in found.items()
        if issubclass(cls, Operation) and cls is not Operation and not issubclass(cls, keras.Layer)
    }


def layers():
    """The layer classes that `keras.layers` exports, by name."""
    return {
        name: cls
        for name, cls in vars(keras.layers).items()
        if inspect.isclass(cls) and issubclass(cls, keras.Layer)
    }


def test_every_operation_has_a_status():
    new = [name for name in operations() if catalogue.status_of_operation(name) is None]
    assert not new, "operations that the catalogue does not know"


def test_every_layer_has_a_status():
    new = [name for name, cls in layers().items() if catalogue.status_of_layer(cls) is None]
    assert not new, "layers that the catalogue does not know"


def names_of_rules():
    named = {
        k
        for k in (*registry.registered("signal"), *registry.registered("role"))
        if isinstance(k, str)
    }
    unknown = {n for names in catalogue.UNKNOWN_OPERATIONS.values() for n in names}
    return sorted({*named, *unknown})


def test_names_are_those_of_operations():
    """An operation that Keras renames would lose its rule without a word."""
    if keras.__version__.startswith("3.10."):
        pytest.skip("the oldest Keras lacks operations of later ones")
    assert not set(names_of_rules()) - set(operations())


def test_no_operation_is_both_known_and_unknown():
    unknown = [n for names in catalogue.UNKNOWN_OPERATIONS.values() for n in names]
    assert len(unknown) == len(set(unknown))
    known = set(identity.IDENTITY_OPERATIONS)
    assert not set(unknown) & (
        known | {k for k in registry.registered("signal") if isinstance(k, str)}
    )


def test_a_function_of_keras_ops_makes_the_operation_of_its_name():
    """The names in the registry are those of the objects that models hold."""
    x = keras.KerasTensor((2, 4, 4, 8))
    for function, name in (
        (keras.ops.relu, "Relu"),
        (keras.activations.relu, "ReLU"),
        (keras.ops.silu, "Silu"),
        (keras.ops.softmax, "Softmax"),
        (keras.ops.square, "Square"),
        (keras.ops.rsqrt, "Rsqrt"),
        (keras.ops.abs, "Absolute"),
        (lambda t: t + t, "Add"),
        (lambda t: t * t, "Multiply"),
        (lambda t: t / t, "TrueDivide"),
        (lambda t: t[:, 0], "GetItem"),
        (lambda t: keras.ops.split(t, 2, -1)[0], "Split"),
        (lambda t: keras.ops.mean(t, -1), "Mean"),
        (lambda t: keras.ops.max_pool(t, 2), "MaxPool"),
        (lambda t: keras.ops.reshape(t, (2, 16, 8)), "Reshape"),
        (lambda t: keras.ops.transpose(t, (0, 2, 1, 3)), "Transpose"),
        (lambda t: keras.ops.matmul(t, keras.ops.swapaxes(t, 2, 3)), "Matmul"),
        (lambda t: keras.ops.einsum("abcd,abcd->abd", t, t), "Einsum"),
    ):
        assert type(function(x)._keras_history.operation).__name__ == name
