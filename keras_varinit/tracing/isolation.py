"""Tracing a model without side effects on it or on threads that use it meanwhile.

While a layer is traced, Keras's entry points are patched to report each call to a recorder and to
leave no node behind. In every other thread they work as before.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import keras

from keras_varinit.keras_private import (
    builds_itself,
    entry_points,
    is_shape_inference,
    is_symbolic,
    keeping_losses,
    keeping_names,
    operation_name,
    staying_unbuilt,
)
from keras_varinit.typing import Args, Function, Kwargs, Layer, Nested, Operation, Variable

# Only one thread at a time traces, measures or shadows; others may predict and train meanwhile.
_READING = threading.RLock()


class Recorder(Protocol):
    """Receives the calls made inside a traced layer."""

    def call(self, operation: Operation, args: Args, kwargs: Kwargs, original: Function) -> Nested:
        """In place of `Operation.__call__`."""

    def note(self, operation: Operation, args: Args, kwargs: Kwargs, outputs: Nested) -> None:
        """Records a call and its outputs."""


class _Reporting:
    """Replacements of Keras's entry points, which report to a recorder in the tracing thread."""

    def __init__(self) -> None:
        self.recorders: list[Recorder] = []
        self.thread = threading.get_ident()
        self.unbuilt = contextlib.ExitStack()
        self.trusts_calls = False

    def is_reading(self) -> bool:
        return bool(self.recorders) and threading.get_ident() == self.thread

    def recorder(self) -> Recorder | None:
        """The active recorder; None in other threads and while Keras infers shapes."""
        return self.recorders[-1] if self.is_reading() and not is_shape_inference() else None

    def call(self, original: Function) -> Function:
        def __call__(operation: Operation, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            recorder = self.recorder()
            if recorder is None:
                return original(operation, *args, **kwargs)
            return recorder.call(operation, args, kwargs, original)

        return __call__

    def symbolic_call(self, original: Function) -> Function:
        def symbolic_call(operation: Operation, *args: Any, **kwargs: Any) -> Any:
            recorder = self.recorder()
            if recorder is None:
                return original(operation, *args, **kwargs)
            name = operation_name(operation)
            if name == "Ndim":
                return len(args[0].shape)  # a number, whereas Keras returns a symbolic tensor
            if name == "ConvertToTensor" and operation.dtype in (None, args[0].dtype):
                return args[0]
            outputs = operation.compute_output_spec(*args, **kwargs)
            recorder.note(operation, args, kwargs, outputs)
            return outputs

        return symbolic_call

    def node(self, original: Function) -> Function:
        def node(
            operation: Operation,
            call_args: Args = (),
            call_kwargs: Kwargs | None = None,
            **rest: Any,
        ) -> Any:
            recorder = self.recorder()
            if recorder is None:
                return original(operation, call_args, call_kwargs, **rest)
            return recorder.note(operation, call_args, call_kwargs or {}, rest.get("outputs"))

        return node

    def build(self, original: Function) -> Function:
        def build(layer: Layer, *args: Any, **kwargs: Any) -> Any:
            if self.is_reading() and not layer.built:
                self.unbuilt.enter_context(staying_unbuilt([layer]))
            return original(layer, *args, **kwargs)

        return build

    def add_weight(self, original: Function) -> Function:
        def add_weight(layer: Layer, *args: Any, **kwargs: Any) -> Any:
            if self.is_reading():
                raise _not_built(layer)
            return original(layer, *args, **kwargs)

        return add_weight

    def add_loss(self, original: Function) -> Function:
        def add_loss(layer: Layer, *args: Any, **kwargs: Any) -> Any:
            return None if self.is_reading() else original(layer, *args, **kwargs)

        return add_loss

    clear_losses = add_loss


def _not_built(layer: Layer) -> ValueError:
    return ValueError(f"layer {layer.name!r} is not built; call the model on data once first")


# A variable as the left operand would convert a symbolic right operand to an array.
_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("lt", "le", "gt", "ge", "and", "or", "xor"),
)


def _leaving_to_the_right(original: Function) -> Function:
    def operator(variable: Variable, other: Any) -> Any:
        return NotImplemented if is_symbolic(other) else original(variable, other)

    return operator


_reporting: list[_Reporting] = []


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Patches Keras's entry points within the scope, which one thread at a time can enter."""
    with _READING, keeping_names(), contextlib.ExitStack() as stack:
        if _reporting:
            yield
            return
        _reporting.append(_Reporting())
        stack.callback(_reporting.pop)
        stack.enter_context(_reporting[0].unbuilt)
        for name, (owner, attribute) in entry_points().items():
            make = getattr(_reporting[0], name)
            stack.enter_context(_replaced(owner, attribute, make(getattr(owner, attribute))))
        for name in _OPERATORS:
            attribute = f"__{name}__"
            operator = _leaving_to_the_right(getattr(keras.Variable, attribute))
            stack.enter_context(_replaced(keras.Variable, attribute, operator))
        # Makes NumPy leave `number * tensor` to the tensor, instead of converting it to an array.
        stack.enter_context(_replaced(keras.KerasTensor, "__array_ufunc__", None))
        yield


@contextlib.contextmanager
def trusting_calls() -> Iterator[None]:
    """Infers output shapes of users' layers from `call`, not from `compute_output_shape`.

    The latter is faster, but may be wrong.
    """
    with reading():
        before, _reporting[0].trusts_calls = _reporting[0].trusts_calls, True
        try:
            yield
        finally:
            _reporting[0].trusts_calls = before


def is_trusting_calls() -> bool:
    """Whether `trusting_calls` is active."""
    return bool(_reporting) and _reporting[0].trusts_calls


@contextlib.contextmanager
def reporting_to(recorder: Recorder) -> Iterator[None]:
    """Reports symbolic calls to a recorder; values assigned to variables are discarded."""
    with reading(), keras.StatelessScope():
        recorders = _reporting[0].recorders
        recorders.append(recorder)
        try:
            yield
        finally:
            recorders.pop()


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute of a class or module within the scope."""
    absent = object()
    before = vars(owner).get(name, absent)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def leaving_no_trace(layers: Sequence[Layer]) -> Iterator[None]:
    """Undoes what calls of layers change: losses, seeds, counters and variables."""
    with contextlib.ExitStack() as stack:
        for scope in (_READING, keeping_names(), keeping_losses(layers), staying_unbuilt(layers)):
            stack.enter_context(scope)
        # Discards what `call` assigns to variables.
        stack.enter_context(keras.StatelessScope())
        for layer in layers:
            if builds_itself(layer):
                stack.enter_context(shadowed(layer, "build", _building_without_weights(layer)))
        yield


def _building_without_weights(layer: Layer) -> Callable[..., None]:
    """The layer's `build`, which raises an error if it adds weights: they would be lost."""
    original, thread = layer.build, threading.get_ident()
    add_weight = keras.Layer.add_weight

    def refusing(owner: Layer, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            raise _not_built(layer)
        return add_weight(owner, *args, **kwargs)

    def build(*args: Any, **kwargs: Any) -> None:
        with _replaced(keras.Layer, "add_weight", refusing):
            original(*args, **kwargs)

    return build


@contextlib.contextmanager
def shadowed(layer: Operation, name: str, method: Function) -> Iterator[None]:
    """Replaces a method or function of one layer within the scope, in this thread only."""
    with _READING:
        own, absent, thread = vars(layer), object(), threading.get_ident()
        before, original = own.get(name, absent), getattr(layer, name)

        @functools.wraps(original)  # Keras reads the signature of `build`
        def dispatch(*args: Any, **kwargs: Any) -> Any:
            function = method if threading.get_ident() == thread else original
            return function(*args, **kwargs)

        own[name] = dispatch
        try:
            yield
        finally:
            if before is absent:
                del own[name]
            else:
                own[name] = before
