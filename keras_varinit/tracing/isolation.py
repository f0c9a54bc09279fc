"""Reading a model without a trace on it, and unnoticed by threads that use it meanwhile.

While a layer is recorded, Keras's entry points report each call to a recorder and leave no node
behind. They do so in the reading thread alone: for every other thread they are what they were.
"""

import contextlib
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

# One thread at a time reads, measures or shadows; others go on predicting and training meanwhile.
_READING = threading.RLock()


class Recorder(Protocol):
    """What calls are reported to."""

    def call(self, operation: Any, args: Any, kwargs: Any, original: Callable[..., Any]) -> Any:
        """In place of `Operation.__call__`."""

    def note(self, operation: Any, args: Any, kwargs: Any, outputs: Any) -> None:
        """Takes note of a call and of its outputs."""


class _Reporting:
    """Keras's entry points, which report to the recorder in use in the thread that reads."""

    def __init__(self) -> None:
        self.recorders: list[Recorder] = []
        self.thread = threading.get_ident()
        self.unbuilt = contextlib.ExitStack()
        self.trusts_calls = False

    def is_reading(self) -> bool:
        return bool(self.recorders) and threading.get_ident() == self.thread

    def recorder(self) -> Recorder | None:
        """The recorder in use; None in other threads, and while Keras infers shapes."""
        return self.recorders[-1] if self.is_reading() and not is_shape_inference() else None

    def call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __call__(operation: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            recorder = self.recorder()
            if recorder is None:
                return original(operation, *args, **kwargs)
            return recorder.call(operation, args, kwargs, original)

        return __call__

    def symbolic_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def symbolic_call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            recorder = self.recorder()
            if recorder is None:
                return original(operation, *args, **kwargs)
            name = operation_name(operation)
            if name == "Ndim":
                return len(args[0].shape)  # a number, where Keras gives a symbolic tensor
            if name == "ConvertToTensor" and operation.dtype in (None, args[0].dtype):
                return args[0]
            outputs = operation.compute_output_spec(*args, **kwargs)
            recorder.note(operation, args, kwargs, outputs)
            return outputs

        return symbolic_call

    def node(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def node(operation: Any, call_args: Any = (), call_kwargs: Any = None, **rest: Any) -> Any:
            recorder = self.recorder()
            if recorder is None:
                return original(operation, call_args, call_kwargs, **rest)
            return recorder.note(operation, call_args, call_kwargs or {}, rest.get("outputs"))

        return node

    def build(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def build(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if self.is_reading() and not layer.built:
                self.unbuilt.enter_context(staying_unbuilt([layer]))
            return original(layer, *args, **kwargs)

        return build

    def add_weight(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def add_weight(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if self.is_reading():
                raise _not_built(layer)
            return original(layer, *args, **kwargs)

        return add_weight

    def add_loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def add_loss(layer: Any, *args: Any, **kwargs: Any) -> Any:
            return None if self.is_reading() else original(layer, *args, **kwargs)

        return add_loss

    clear_losses = add_loss


def _not_built(layer: Any) -> ValueError:
    return ValueError(f"layer {layer.name!r} is not built; call the model on data once before")


# Python asks the left operand first, and a variable there would turn the other into an array.
_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("lt", "le", "gt", "ge", "and", "or", "xor"),
)


def _leaving_to_the_right(original: Callable[..., Any]) -> Callable[..., Any]:
    def operator(variable: Any, other: Any) -> Any:
        return NotImplemented if is_symbolic(other) else original(variable, other)

    return operator


_reporting: list[_Reporting] = []


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """What is recorded in it leaves nothing behind; one thread at a time can be in it."""
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
        # NumPy then leaves `number * tensor` to the tensor, instead of making an array of it.
        stack.enter_context(_replaced(keras.KerasTensor, "__array_ufunc__", None))
        yield


@contextlib.contextmanager
def trusting_calls() -> Iterator[None]:
    """The shapes of what users' layers return are inferred from their `call` in it.

    It takes longer than asking their `compute_output_shape`, which may say something else.
    """
    with reading():
        before, _reporting[0].trusts_calls = _reporting[0].trusts_calls, True
        try:
            yield
        finally:
            _reporting[0].trusts_calls = before


def is_trusting_calls() -> bool:
    """Whether `trusting_calls` is in force."""
    return bool(_reporting) and _reporting[0].trusts_calls


@contextlib.contextmanager
def reporting_to(recorder: Recorder) -> Iterator[None]:
    """Symbolic calls in it are reported to a recorder; what they assign to variables is lost."""
    with reading(), keras.StatelessScope():
        recorders = _reporting[0].recorders
        recorders.append(recorder)
        try:
            yield
        finally:
            recorders.pop()


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value in place of an attribute of a class or module."""
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
def leaving_no_trace(layers: Sequence[Any]) -> Iterator[None]:
    """Calls of layers in it leave no loss, seed, counter or new variable behind."""
    with contextlib.ExitStack() as stack:
        for scope in (_READING, keeping_names(), keeping_losses(layers), staying_unbuilt(layers)):
            stack.enter_context(scope)
        # What `call` assigns to variables is forgotten with the scope.
        stack.enter_context(keras.StatelessScope())
        for layer in layers:
            if builds_itself(layer):
                stack.enter_context(shadowed(layer, "build", _refusing_to_build(layer)))
        yield


def _refusing_to_build(layer: Any) -> Callable[..., None]:
    def build(*args: Any, **kwargs: Any) -> None:
        raise _not_built(layer)

    return build


@contextlib.contextmanager
def shadowed(layer: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Puts a function in place of one layer's method or function, for this thread alone."""
    with _READING:
        own, absent, thread = vars(layer), object(), threading.get_ident()
        before, original = own.get(name, absent), getattr(layer, name)

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
