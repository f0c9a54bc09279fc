"""Access to Keras: the one file that touches its private fields.

Layers and their variables, the records ("nodes") that Keras makes of symbolic calls, optimizers.
Only `replace_initializer` and `assign` change a model.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.initializers import ALL_OBJECTS_DICT
from keras.src.layers import layer as layer_module
from keras.src.ops.symbolic_arguments import SymbolicArguments
from keras.src.trainers.compile_utils import CompileLoss

Shape = tuple[int | None, ...]


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
    if attribute == "initializer":  # of the one weight that there is
        floats = [v for v in own_variables(layer) if keras.backend.is_float_dtype(v.dtype)]
        return floats[0] if len(floats) == 1 else None
    stem = attribute.removesuffix("_initializer")
    names = (stem, f"{stem}_kernel", *(["kernel"] if stem == "depthwise" else []))
    variables = (own_variable(layer, name) for name in names)
    return next((variable for variable in variables if variable is not None), None)


def initializers_of(layer: Any) -> Iterator[tuple[int, str]]:
    """The `id` of each variable of a layer, with the attribute that holds its initializer."""
    if not own_variables(layer):
        return
    for attribute, _ in initializer_attributes(layer, keras.initializers.Initializer):
        variable = variable_of_initializer(layer, attribute)
        if variable is not None:
            yield id(variable), attribute


def layer_being_built() -> Any | None:
    """The layer that is making a variable right now, or None."""
    scopes = global_state.get_global_attribute("name_scope_stack")
    caller = scopes[-1].caller if scopes else None
    return caller if isinstance(caller, keras.Layer) else None


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
    """Puts an initializer where the layer keeps it, so that it is saved with the layer.

    None takes away one that the layer did not keep.
    """
    if initializer is None:
        delattr(layer, attribute)
    else:
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


def recorded_nodes(functional: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Inputs, outputs and nodes, in topological order, of a Functional model."""
    inputs, outputs = list(functional.inputs), list(functional.outputs)

    def producer(tensor: Any) -> Any:
        operation, index, _ = tensor._keras_history
        return operation._inbound_nodes[index]

    return inputs, outputs, topological(inputs, outputs, producer)


def entry_points() -> dict[str, tuple[Any, str]]:
    """Where Keras calls operations, records calls, and builds layers: owner and attribute."""
    return {
        "call": (keras.Operation, "__call__"),
        "symbolic_call": (keras.Operation, "symbolic_call"),
        "node": (layer_module, "Node"),
        "build": (keras.Layer, "_maybe_build"),
        "add_weight": (keras.Layer, "add_weight"),
        "add_loss": (keras.Layer, "add_loss"),
        "clear_losses": (keras.Layer, "_clear_losses"),
    }


def call_arguments(args: Any, kwargs: Any) -> Any:
    """Arguments of a call in the form in which Keras's own records keep them."""
    return SymbolicArguments(*args, **kwargs)


def is_shape_inference() -> bool:
    """Whether Keras is running a `call` of its own to infer shapes."""
    return bool(in_symbolic_scope())


def is_keras_class(cls: type) -> bool:
    """Whether a class is part of Keras itself."""
    return cls.__module__.split(".", 1)[0] == "keras"


def builds_itself(layer: Any) -> bool:
    """Whether a layer is unbuilt and has a `build` that a user wrote."""
    if layer.built or getattr(layer.build, "_is_default", False):
        return False
    owner = next(cls for cls in type(layer).__mro__ if "build" in vars(cls))
    return not is_keras_class(owner)


@contextlib.contextmanager
def staying_unbuilt(layers: Sequence[Any]) -> Iterator[None]:
    """Layers that are unbuilt before are so after: attributes and layers inside are put back."""
    states = [(each, dict(vars(each)), list(each._layers)) for each in layers if not each.built]
    try:
        yield
    finally:
        for layer, state, inner in states:
            layer._tracker.unlock()
            layer._layers[:] = inner
            own = vars(layer)
            for name in [name for name in own if name not in state]:
                del own[name]
            own.update(state)


@contextlib.contextmanager
def keeping_losses(layers: Sequence[Any]) -> Iterator[None]:
    """Losses that layers add in it are forgotten."""
    losses = [(layer, list(layer._losses), set(layer._loss_ids)) for layer in layers]
    try:
        yield
    finally:
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


def is_float(variable: Any) -> bool:
    """Whether a variable holds floating-point numbers."""
    return bool(keras.backend.is_float_dtype(variable.dtype))


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


def topological(
    inputs: Sequence[Any], outputs: Sequence[Any], producer: Callable[[Any], Any]
) -> list[Any]:
    """The nodes between tensors, producers before consumers."""
    known = {id(t) for t in inputs}
    done: set[int] = set()
    order = []
    stack = [(t, False) for t in reversed(outputs)]
    while stack:
        tensor, expanded = stack.pop()
        if id(tensor) in known:
            continue
        node = producer(tensor)
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
