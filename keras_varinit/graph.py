"""Access to Keras: the one file that touches its private fields.

Layers and their variables, the records ("nodes") that Keras makes of symbolic calls, optimizers.
Only `replace_initializer` and `assign` change a model, and `recorded_call` for a moment.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.initializers import ALL_OBJECTS_DICT
from keras.src.trainers.compile_utils import CompileLoss

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A symbolic computation: input tensors, output tensors, and Keras's nodes between them.

    `constants` stand for numbers that a layer was called on, such as positions to be embedded;
    `values` are those numbers.
    """

    inputs: list[Any]
    outputs: list[Any]
    nodes: list[Any]
    constants: list[Any] = dataclasses.field(default_factory=list)
    values: list[Any] = dataclasses.field(default_factory=list)


def name_initializer(name: str, cls: type) -> None:
    """Makes `keras.initializers.get(name)` find a class, as well as configs that name it."""
    keras.saving.get_custom_objects()[name] = cls
    # From Keras 3.16 on, `get` looks strings up in the table of Keras's own initializers alone.
    ALL_OBJECTS_DICT.setdefault(name, cls)


def check_built(model: Any) -> Any:
    """Returns the model if it is a built Keras model; otherwise raises, naming the fix."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a built keras.Model. "
            f"Received: model={model!r} of type {type(model).__name__}."
        )
    if not model.built:
        raise ValueError(
            f"Model {model.name!r} is not built, so its kernels do not exist yet. Call "
            "model.build(input_shape), start a Sequential with keras.Input(shape), or use "
            "keras_varinit.ContextInjector() in fit, which runs once the model is built."
        )
    return model


def layers_of(model: Any) -> list[Any]:
    """All layers inside a model, nested ones included, in order of construction, each once."""
    found, seen = [], {id(model)}
    stack = list(reversed(model._layers))
    while stack:
        layer = stack.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        found.append(layer)
        stack.extend(reversed(layer._layers))
    return found


def own_variables(layer: Any) -> list[Any]:
    """The variables that a layer created itself, sublayers left out; a raw operation has none."""
    if is_raw_operation(layer):
        return []
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_variable(layer: Any, name: str) -> Any | None:
    """The layer's own variable of that name, or None."""
    return next((v for v in own_variables(layer) if v.name == name), None)


def initializer_attributes(layer: Any, cls: type) -> Iterator[tuple[str, Any]]:
    """Attributes of a layer that hold an initializer of class `cls`."""
    for name, value in list(vars(layer).items()):
        if isinstance(value, cls):
            yield name, value


def variable_of_initializer(layer: Any, attribute: str) -> Any | None:
    """The variable that Keras's naming ties to an attribute such as `recurrent_initializer`."""
    stem = attribute.removesuffix("_initializer")
    names = (stem, f"{stem}_kernel", *(["kernel"] if stem == "depthwise" else []))
    variables = (own_variable(layer, name) for name in names)
    return next((variable for variable in variables if variable is not None), None)


def initializers_of(layer: Any) -> Iterator[tuple[int, str]]:
    """The `id` of each variable of a layer, with the attribute that holds its initializer."""
    for attribute, _ in initializer_attributes(layer, keras.initializers.Initializer):
        variable = variable_of_initializer(layer, attribute)
        if variable is not None:
            yield id(variable), attribute


def is_raw_operation(operation: Any) -> bool:
    """Whether an operation is one of `keras.ops` and no layer."""
    return not isinstance(operation, keras.Layer)


def operation_name(operation: Any) -> str:
    """Class name of an operation of `keras.ops`, such as "Relu" or "Add"."""
    return type(operation).__name__


def assign(variable: Any, value: Any) -> None:
    """Sets a variable's value."""
    variable.assign(value)


def replace_initializer(layer: Any, attribute: str, initializer: Any) -> None:
    """Puts an initializer where the layer keeps it, so that it is saved with the layer."""
    setattr(layer, attribute, initializer)


def moving_averages(model: Any) -> dict[int, Any]:
    """The optimizer's moving averages by the `id` of the variable that they average."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None or not optimizer.built or not getattr(optimizer, "use_ema", False):
        return {}
    averaged = zip(
        optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True
    )
    return {id(variable): average for variable, average in averaged if average is not None}


def optimizer_state(model: Any) -> list[Any]:
    """The optimizer's variables, learning rate and loss scale left out."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(optimizer, "_learning_rate", None)
    return [v for v in getattr(optimizer, "variables", ()) if v is not rate]


def functional_of(model: Any) -> Any | None:
    """The Functional model behind a model, or None where Keras records no graph."""
    functional = getattr(model, "_functional", None)
    if functional is None and isinstance(model, keras.Model) and hasattr(model, "_nodes"):
        return model
    return functional


def before_first_step(model: Any, action: Callable[[], None]) -> Callable[[], None]:
    """Builds an unbuilt model and runs `action`, right before the first step of its training.

    On TensorFlow Keras builds a model while it traces the first step, which then trains it at once;
    the other backends build it before training begins. The shapes are those of the data iterator.

    Returns:
        A function that calls it off.
    """
    step = model.train_function

    def first_step(iterator: Any) -> Any:
        model.train_function = step
        model._symbolic_build(data_batch=iterator.element_spec)
        action()
        return step(iterator)

    def cancel() -> None:
        if model.train_function is first_step:
            model.train_function = step

    model.train_function = first_step
    return cancel


def recorded_model(functional: Any) -> Recorded:
    """What a Functional model computes."""
    inputs, outputs = list(functional.inputs), list(functional.outputs)
    return Recorded(inputs, outputs, _topological(inputs, outputs))


def recorded_call(layer: Any, args: Any, kwargs: Any) -> Recorded:
    """What a layer's own `call` does, seen by calling it on symbolic tensors.

    Nothing of it stays behind on the layer and on those inside it; only names are counted on.

    Raises:
        Exception: whatever `call` raises on symbolic tensors.
    """
    try:
        return _recorded(layer, args, kwargs)
    except Exception:
        # Random numbers of the shape of a tensor need to know how many.
        sized = keras.tree.map_structure(_with_batch_size, (args, kwargs))
        with contextlib.suppress(Exception):
            return _recorded(layer, *sized)
        raise


def _recorded(layer: Any, args: Any, kwargs: Any) -> Recorded:
    inputs = [t for t in keras.tree.flatten((args, kwargs)) if is_symbolic(t)]
    inner = layers_of(layer)
    constants: list[Any] = []
    values: list[Any] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(leaving_no_trace([layer, *inner]))
        stack.enter_context(shadowed(layer, "add_loss", lambda loss: None))
        for each in inner:
            if own_variables(each):
                stack.enter_context(shadowed(each, "call", _recording(each, constants, values)))
        results = layer.call(*args, **kwargs)
        outputs = [t for t in keras.tree.flatten(results) if is_symbolic(t)]
        nodes = _topological([*inputs, *constants], outputs)
        return Recorded(inputs, outputs, nodes, constants, values)


def _recording(layer: Any, constants: list[Any], values: list[Any]) -> Callable[..., Any]:
    """A layer's `call` that is recorded also where it is given numbers."""
    original = layer.call

    def renew(value: Any) -> Any:
        if not keras.ops.is_tensor(value):
            return value
        values.append(value)
        constants.append(symbolic(tuple(value.shape), keras.backend.standardize_dtype(value.dtype)))
        return constants[-1]

    def call(*args: Any, **kwargs: Any) -> Any:
        given = keras.tree.flatten((args, kwargs))
        if in_symbolic_scope() or any(is_symbolic(value) for value in given):
            return original(*args, **kwargs)
        args, kwargs = keras.tree.map_structure(renew, (args, kwargs))
        return layer(*args, **kwargs)

    return call


def _with_batch_size(value: Any) -> Any:
    """A symbolic tensor of unknown batch size with one of two; any other value as it is."""
    if not is_symbolic(value) or not value.shape or value.shape[0] is not None:
        return value
    return symbolic((2, *value.shape[1:]), value.dtype)


@contextlib.contextmanager
def leaving_no_trace(layers: Sequence[Any]) -> Iterator[None]:
    """Calls of layers in it leave no node, loss, seed, counter or new variable behind."""
    records = [
        (record, len(record))
        for layer in layers
        for record in (layer._inbound_nodes, layer._outbound_nodes)
    ]
    losses = [(layer, list(layer._losses), set(layer._loss_ids)) for layer in layers]
    unbuilt = [layer for layer in layers if not layer.built]
    try:
        # What `call` assigns to variables (seeds, counters) is forgotten with the scope.
        with keras.StatelessScope(), contextlib.ExitStack() as stack:
            for layer in unbuilt:
                if not getattr(layer.build, "_is_default", False):
                    refusal = _refusing_to_build(layer.name)
                    stack.enter_context(shadowed(layer, "build", refusal))
            yield
    finally:
        for layer in unbuilt:
            layer.built = False
        for record, length in records:
            del record[length:]
        for layer, kept, identities in losses:
            layer._losses[:] = kept
            layer._loss_ids.clear()
            layer._loss_ids.update(identities)


@contextlib.contextmanager
def keeping_names() -> Iterator[None]:
    """Puts the counters back from which Keras makes the names of layers and tensors."""
    counters = global_state.get_global_attribute("object_name_uids")
    counted = None if counters is None else dict(counters)
    try:
        yield
    finally:
        if counted is not None:
            counters.clear()
            counters.update(counted)


def _refusing_to_build(name: str) -> Callable[..., None]:
    """In place of a layer's `build`, which would give the model new variables."""

    def build(*args: Any, **kwargs: Any) -> None:
        raise ValueError(f"layer {name!r} is not built; call the model on data once before")

    return build


@contextlib.contextmanager
def shadowed(layer: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Puts a function in place of one layer's method."""
    own, absent = vars(layer), object()
    before = own.get(name, absent)
    own[name] = method
    try:
        yield
    finally:
        if before is absent:
            del own[name]
        else:
            own[name] = before


def is_variable(value: Any) -> bool:
    """Whether a value is a Keras variable."""
    return isinstance(value, keras.Variable)


def is_symbolic(value: Any) -> bool:
    """Whether a value is one of Keras's symbolic tensors."""
    return isinstance(value, keras.KerasTensor)


def symbolic(shape: Shape, dtype: str | None = None) -> Any:
    """A new symbolic tensor."""
    return keras.KerasTensor(shape, dtype=dtype or keras.config.floatx())


def build_shapes(model: Any) -> dict[str, Any]:
    """The shapes that a model was built with, by the name of the argument."""
    return {k: v for k, v in (model._build_shapes_dict or {}).items() if v is not None}


def shape_of(tensor: Any) -> Shape:
    """The shape of a symbolic tensor."""
    return tuple(tensor.shape)


def _topological(inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """The nodes between tensors, producers before consumers."""
    known = {id(t) for t in inputs}
    done: set[int] = set()
    order = []
    stack = [(t, False) for t in reversed(outputs)]
    while stack:
        tensor, expanded = stack.pop()
        if id(tensor) in known:
            continue
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        if id(node) in done:
            continue
        if expanded:
            done.add(id(node))
            order.append(node)
            known.update(id(t) for t in node.output_tensors)
        else:
            stack.append((tensor, True))
            stack.extend((t, False) for t in reversed(node.input_tensors))
    return order


def with_mask_of(tensor: Any, source: Any) -> Any:
    """The tensor, carrying the Keras mask that `source` carries."""
    mask = get_keras_mask(source)
    if mask is not None and tensor is not source:
        set_keras_mask(tensor, mask)
    return tensor


def standardized_inputs(functional: Any, x: Any) -> list[Any]:
    """A batch as tensors in the order of a functional model's inputs."""
    return list(functional._standardize_inputs(x))


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


def sums_over_batch(function: Any) -> bool:
    """Whether a built loss of `new_loss` sums over the examples instead of averaging."""
    losses = [entry.loss for entry in function._flat_losses]
    return all(getattr(loss, "reduction", None) == "sum" for loss in losses)
