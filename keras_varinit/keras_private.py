"""Access to Keras: the only file that touches its private attributes.

Layers and their variables, the nodes that Keras records of symbolic calls, optimizers, losses.
Only `replace_attribute` and `assign` change a model.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.initializers import ALL_OBJECTS_DICT
from keras.src.layers import layer as layer_module
from keras.src.ops.symbolic_arguments import SymbolicArguments
from keras.src.trainers.compile_utils import CompileLoss

from keras_varinit.typing import (
    CallArguments,
    Layer,
    Model,
    Nested,
    Operation,
    RecordedNode,
    SymbolicTensor,
    Tensor,
    Variable,
)

Shape = tuple[int | None, ...]

ATTENTION_METHODS = {"call", "_compute_attention", "_compute_attention_mask", "_masked_softmax"}


def name_initializer(name: str, cls: type) -> None:
    """Registers a class under a name for `keras.initializers.get` and for configs."""
    keras.saving.get_custom_objects()[name] = cls
    # From Keras 3.16 on, `get` looks strings up only in the table of Keras's own initializers.
    ALL_OBJECTS_DICT.setdefault(name, cls)


def check_built(model: Model) -> Model:
    """Returns the model if it is a built Keras model; otherwise raises, naming the fix."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a built keras.Model. "
            f"Received: model={model!r} of type {type(model).__name__}."
        )
    if not model.built:
        raise ValueError(
            f"Model {model.name!r} is not built, so its kernels do not exist yet. Call "
            "model.build(input_shape), start a Sequential with keras.Input(shape), or pass "
            "keras_varinit.ContextInjector() to fit, which runs once the model is built."
        )
    return cast(Model, model)


def layers_of(model: Operation) -> list[Layer]:
    """All layers inside a model or layer, nested ones included, in order of construction."""
    layers: list[Layer] = []
    seen = {id(model)}
    stack = list(reversed(model._layers))
    while stack:
        layer = stack.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        layers.append(layer)
        stack.extend(reversed(layer._layers))
    return layers


def own_variables(layer: Operation) -> list[Variable]:
    """The variables that a layer itself created, not its sublayers; none for raw operations."""
    if is_raw_operation(layer):
        return []
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_variable(layer: Operation, name: str) -> Variable | None:
    """The layer's own variable of that name, or None."""
    return next((v for v in own_variables(layer) if v.name == name), None)


def initializer_attributes(layer: Layer, cls: type) -> Iterator[tuple[str, Any]]:
    """Name and value of each attribute of a layer that is an initializer of class `cls`."""
    for name, value in list(vars(layer).items()):
        if isinstance(value, cls):
            yield name, value


def variable_of_initializer(layer: Layer, attribute: str) -> Variable | None:
    """The variable that an attribute such as `recurrent_initializer` is named after, or None."""
    if attribute == "initializer":  # a layer with a single weight
        floats = [v for v in own_variables(layer) if keras.backend.is_float_dtype(v.dtype)]
        return floats[0] if len(floats) == 1 else None
    stem = attribute.removesuffix("_initializer")
    names = (stem, f"{stem}_kernel", *(["kernel"] if stem == "depthwise" else []))
    variables = (own_variable(layer, name) for name in names)
    return next((variable for variable in variables if variable is not None), None)


def initializers_of(layer: Layer) -> Iterator[tuple[int, str]]:
    """The `id` of each variable of a layer, and the name of its initializer's attribute."""
    if not own_variables(layer):
        return
    for attribute, _ in initializer_attributes(layer, keras.initializers.Initializer):
        variable = variable_of_initializer(layer, attribute)
        if variable is not None:
            yield id(variable), attribute


def layer_being_built() -> Layer | None:
    """The layer that is creating variables at the moment, or None."""
    scopes = global_state.get_global_attribute("name_scope_stack")
    caller = scopes[-1].caller if scopes else None
    return cast(Layer, caller) if isinstance(caller, keras.Layer) else None


def is_raw_operation(operation: Operation) -> bool:
    """Whether an operation belongs to `keras.ops` and is not a layer."""
    return not isinstance(operation, keras.Layer)


def operation_name(operation: Operation) -> str:
    """Class name of an operation of `keras.ops`, such as "Relu" or "Add"."""
    return type(operation).__name__


def assign(variable: Variable, value: Any) -> None:
    """Sets a variable's value."""
    variable.assign(value)


def has_value(variable: Variable) -> bool:
    """Whether a variable has a value, not only a shape."""
    return variable._value is not None


def pending(variable: Variable) -> Any:
    """What will draw the first value of a variable that has none; None if it has one."""
    return variable._initializer


def set_pending(variable: Variable, initializer: Any) -> None:
    """Sets what will draw the first value of a variable."""
    cast(Any, variable)._initializer = initializer


def create_value(variable: Variable) -> None:
    """Gives a variable its first value."""
    variable._deferred_initialize()


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Variables that are created inside have shapes only, and Keras forgets to fill them."""
    with keras.StatelessScope(initialize_variables=False):
        waiting = global_state.get_global_attribute("uninitialized_variables", [], True)
        count = len(waiting)
        try:
            yield
        finally:
            del waiting[count:]


def replace_attribute(layer: Layer | None, attribute: str, value: Any) -> None:
    """Sets a layer's attribute, such as its initializer, so that it is saved with the layer.

    None deletes the attribute.
    """
    if value is None:
        delattr(layer, attribute)
    else:
        setattr(layer, attribute, value)


def moving_averages(model: Model) -> dict[int, Variable]:
    """The optimizer's moving averages of weights, by the `id` of the weight."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None or not optimizer.built or not getattr(optimizer, "use_ema", False):
        return {}
    averaged = zip(
        optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True
    )
    return {id(variable): average for variable, average in averaged if average is not None}


def optimizer_state(model: Model) -> list[Variable]:
    """The optimizer's variables except for its learning rate and loss scale."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(optimizer, "_learning_rate", None)
    return [v for v in getattr(optimizer, "variables", ()) if v is not rate]


def functional_of(model: Operation) -> Model | None:
    """The Functional model that a model is or wraps; None where Keras records no graph."""
    functional = getattr(model, "_functional", None)
    if functional is None and isinstance(model, keras.Model) and hasattr(model, "_nodes"):
        return cast(Model, model)
    return cast(Model | None, functional)


def before_first_step(model: Model, action: Callable[[], None]) -> Callable[[], None]:
    """Builds an unbuilt model and runs `action` right before its first training step.

    On TensorFlow, Keras builds a model while it traces the first step, which then trains it
    immediately; other backends build it before training. Returns a function that cancels this.
    """
    step, waits = model.train_function, True

    def first_step(iterator: Any) -> Any:
        model.train_function = step
        if waits:
            model._symbolic_build(data_batch=iterator.element_spec)
            action()
        return step(iterator)

    def cancel() -> None:
        nonlocal waits  # the step may be wrapped
        waits = False

    model.train_function = first_step
    return cancel


def recorded_producer(tensor: Any) -> RecordedNode:
    """The node that a tensor of a Functional model comes from."""
    operation, index, _ = tensor._keras_history
    return cast(RecordedNode, operation._inbound_nodes[index])


def running_nodes(functional: Model) -> list[RecordedNode]:
    """The nodes of a Functional model in the order in which Keras runs them."""
    by_depth = functional._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def entry_points() -> dict[str, tuple[Any, str]]:
    """Owner and attribute of the functions by which Keras calls, records and builds layers."""
    return {
        "call": (keras.Operation, "__call__"),
        "symbolic_call": (keras.Operation, "symbolic_call"),
        "node": (layer_module, "Node"),
        "build": (keras.Layer, "_maybe_build"),
        "add_weight": (keras.Layer, "add_weight"),
        "add_loss": (keras.Layer, "add_loss"),
        "clear_losses": (keras.Layer, "_clear_losses"),
    }


def call_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallArguments:
    """The arguments of a call as Keras's own nodes keep them."""
    return cast(CallArguments, SymbolicArguments(*args, **kwargs))


def is_shape_inference() -> bool:
    """Whether Keras is running a `call` of its own accord to infer shapes."""
    return bool(in_symbolic_scope())


def is_keras_class(cls: type) -> bool:
    """Whether Keras itself defines a class."""
    return cls.__module__.split(".", 1)[0] == "keras"


# `call` of these layers ends with `self.activation`; without it they return pre-activations.
LAYERS_THAT_END_WITH_ACTIVATION: tuple[type, ...] = tuple(
    getattr(keras.layers, name)
    for name in (
        *("Dense", "EinsumDense"),
        *(f"Conv{n}D{kind}" for n in (1, 2, 3) for kind in ("", "Transpose")),
        *(f"{kind}Conv{n}D" for n in (1, 2) for kind in ("Depthwise", "Separable")),
    )
)


def ends_with_activation(operation: Operation) -> bool:
    """Whether Keras's own `call` runs and ends with an activation."""
    if not isinstance(operation, LAYERS_THAT_END_WITH_ACTIVATION) or "call" in vars(operation):
        return False
    function = getattr(operation, "activation", None)
    own = getattr(type(operation).call, "__module__", "").startswith("keras.")
    return own and function is not None and function is not keras.activations.linear


def builds_itself(layer: Layer) -> bool:
    """Whether a layer is unbuilt and its `build` is user-defined."""
    if layer.built or getattr(layer.build, "_is_default", False):
        return False
    owner = next(cls for cls in type(layer).__mro__ if "build" in vars(cls))
    return not is_keras_class(owner)


@contextlib.contextmanager
def staying_unbuilt(layers: Sequence[Layer]) -> Iterator[None]:
    """Restores attributes and sublayers of unbuilt layers on exit, so that they stay unbuilt."""
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
def keeping_losses(layers: Sequence[Layer]) -> Iterator[None]:
    """Removes on exit the losses that layers added inside."""
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
    """Restores the counters from which Keras makes the names of layers and tensors."""
    counters = global_state.get_global_attribute("object_name_uids")
    counted = None if counters is None else dict(counters)
    try:
        yield
    finally:
        if counted is not None:
            counters.clear()
            counters.update(counted)


def is_variable(value: Any) -> bool:
    """Whether a value is a Keras variable."""
    return isinstance(value, keras.Variable)


def is_symbolic(value: Any) -> bool:
    """Whether a value is one of Keras's symbolic tensors."""
    return isinstance(value, keras.KerasTensor)


def symbolic(shape: Shape, dtype: str | None = None) -> SymbolicTensor:
    """A new symbolic tensor."""
    return cast(SymbolicTensor, keras.KerasTensor(shape, dtype=dtype or keras.config.floatx()))


def build_shapes(model: Layer) -> dict[str, Nested]:
    """The shapes that a model was built with, by argument name."""
    return {k: v for k, v in (model._build_shapes_dict or {}).items() if v is not None}


def shape_of(tensor: SymbolicTensor) -> Shape:
    """The shape of a symbolic tensor."""
    return tuple(tensor.shape)


def with_mask_of(tensor: Tensor, source: Tensor) -> Tensor:
    """Attaches the Keras mask of `source`, if it has one, to a tensor and returns the tensor."""
    mask = get_keras_mask(source)
    if mask is not None and tensor is not source:
        set_keras_mask(tensor, mask)
    return tensor


def standardized_inputs(functional: Model, x: Nested) -> list[Tensor]:
    """A batch as tensors in the order of a Functional model's inputs."""
    return list(functional._standardize_inputs(x))


def new_loss(model: Model, loss: Nested = None) -> Callable[..., Any] | None:
    """A fresh copy of the model's compiled loss, or `loss` for this model's outputs.

    Returns:
        A function of targets, outputs and sample weights that updates no metric of the model; None
        where there is no loss.
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
    """Whether a built loss from `new_loss` sums over the examples instead of averaging."""
    losses = [entry.loss for entry in function._flat_losses]
    return all(getattr(loss, "reduction", None) == "sum" for loss in losses)
