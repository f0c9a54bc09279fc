"""From a model to its graph, with examples in place of unknown lengths."""

import contextlib
import functools
from collections.abc import Callable

import keras

from keras_varinit.keras_private import (
    build_shapes,
    check_built,
    functional_of,
    shape_of,
    symbolic,
)
from keras_varinit.tracing.isolation import reading, trusting_calls
from keras_varinit.tracing.reader import Graph, Reader
from keras_varinit.tracing.recording import (
    Recorded,
    common_shape,
    loses_sizes,
    recorded_call,
    recorded_model,
    with_sizes,
)
from keras_varinit.typing import Args, Kwargs, Model, Nested, Operation


class NotFollowedError(ValueError):
    """A model's own `call` cannot be traced on symbolic tensors."""


# Pairs of examples of an unknown length; whatever differs between the two is unknown. Short ones
# first, since tables of positions are finite; long ones survive strides and unpadded windows.
_Sizes = tuple[int | None, int | None]

_LENGTHS = ((8, 6), (64, 80), (512, 640), (4096, 4608))


def build_graph(
    model: Model,
    is_known: Callable[[Operation], bool],
    *,
    training: bool = False,
    examples: bool = True,
) -> Graph:
    """Traces the graph of a built model.

    If a layer cannot be opened and lengths are unknown, the whole model is traced again with
    examples in their place, so that lengths that belong together are the same everywhere.

    Args:
        model: A built `keras.Model`.
        is_known: Tells whether a layer becomes a single node; any other layer is opened.
        training: Whether models and layers with their own `call` are called as in training.
        examples: Whether unknown lengths may be replaced. Such a graph cannot run on other lengths.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not built.
        NotFollowedError: its `call` cannot be traced.
    """
    check_built(model)
    best = _Best()
    with reading():
        best.consider(lambda: _read(model, is_known, training))
        if not examples or (best.graph is not None and not best.graph.closed):
            return best.result()
        sizes: tuple[int, int] | None = None
        for sizes in _LENGTHS if _has_unknown_size(model) else ():
            at_lengths = functools.partial(_read_without_lengths, model, is_known, training, sizes)
            if best.consider(at_lengths):
                break
        if best.graph is None or any(best.graph.hidden):
            with trusting_calls():
                if sizes is None:
                    best.consider(lambda: _read(model, is_known, training, (None, None)))
                else:
                    best.consider(lambda: _read_without_lengths(model, is_known, training, sizes))
    return best.result()


class _Best:
    """Of several attempts, the graph with the fewest hidden weights."""

    def __init__(self) -> None:
        self.graph: Graph | None = None
        self.failure: Exception | None = None

    def consider(self, attempt: Callable[[], Graph]) -> bool:
        """Returns whether an attempt is at least as good as those before.

        Of two equally good ones the later is kept: its notes have the remaining reasons.
        """
        try:
            graph = attempt()
        except Exception as error:  # the example may be too short, or a table of positions
            if self.failure is None or isinstance(error, NotFollowedError):
                self.failure = error
            return False
        if self.graph is not None and graph.hidden > self.graph.hidden:
            return False
        self.graph = graph
        return True

    def result(self) -> Graph:
        if self.graph is None:
            raise self.failure or AssertionError
        return self.graph


def _read(
    model: Model, is_known: Callable[[Operation], bool], training: bool, sizes: _Sizes | None = None
) -> Graph:
    """The graph of a model, with `sizes` (batch, length) in place of unknown axes."""
    reader = Reader(Graph(), is_known, training)
    functional = functional_of(model)
    if functional is None:
        recorded = _recorded_root(model, training, sizes)
    elif sizes is None:
        recorded = recorded_model(functional)
        if loses_sizes(recorded):
            # As in a layer's `call`, where what reshapes a batch of known size keeps the others.
            with contextlib.suppress(Exception):
                recorded = recorded_call(functional, [functional.input], {})
    else:
        recorded = recorded_call(functional, [with_sizes(_as_declared(functional), *sizes)], {})
    graph = reader.graph
    graph.inputs = tuple(graph.new_tensor(recorded.shape_of(t)) for t in recorded.inputs)
    graph.outputs = reader.inline(recorded, graph.inputs)
    return graph


def _as_declared(functional: Model) -> Nested:
    """The model's input, with the sizes that the layers it is passed to declare in `input_spec`."""
    recorded = recorded_model(functional)
    shapes = {id(tensor): list(shape_of(tensor)) for tensor in recorded.inputs}
    for node in recorded.nodes:
        specs = keras.tree.flatten(getattr(node.operation, "input_spec", None))
        if len(specs) != len(node.input_tensors):
            continue
        for spec, tensor in zip(specs, node.input_tensors, strict=True):
            if spec is None or id(tensor) not in shapes:
                continue
            shape = shapes[id(tensor)]
            for axis, size in {**dict(enumerate(spec.shape or ())), **(spec.axes or {})}.items():
                shape[axis] = size if shape[axis] is None else shape[axis]
    return keras.tree.map_structure(
        lambda t: symbolic(tuple(shapes[id(t)]), t.dtype), functional.input
    )


def _read_without_lengths(
    model: Model, is_known: Callable[[Operation], bool], training: bool, lengths: tuple[int, int]
) -> Graph:
    """The graph at the first of two examples of the unknown sizes, which stay unknown in it.

    Raises:
        ValueError: the model's operations depend on them.
    """
    one, two = (
        _read(model, is_known, training, sizes) for sizes in zip((2, 3), lengths, strict=True)
    )
    kinds = [
        [(type(n.operation), n.inputs, n.outputs) for n in graph.nodes] for graph in (one, two)
    ]
    if kinds[0] != kinds[1] or len(one.shapes) != len(two.shapes):
        raise ValueError("the model's operations depend on an unknown length")
    one.shapes = [common_shape(a, b) for a, b in zip(one.shapes, two.shapes, strict=True)]
    return one


def _has_unknown_size(model: Model) -> bool:
    functional = functional_of(model)
    if functional is not None:
        shapes = [shape_of(tensor) for tensor in functional.inputs]
    else:
        flat = keras.tree.flatten(list(build_shapes(model).values()))
        shapes = [(None, *flat)]
    return any(None in shape for shape in shapes)


def _recorded_root(model: Model, training: bool, sizes: _Sizes | None) -> Recorded:
    try:
        args, kwargs = _arguments_of_build(model, training=training)
        if sizes is not None:
            args, kwargs = with_sizes((args, kwargs), *sizes)
        return recorded_call(model, args, kwargs)
    except Exception as error:
        raise NotFollowedError(
            f"Model {model.name!r} of class {type(model).__name__} defines its own `call`, which "
            f"cannot be followed on symbolic tensors ({type(error).__name__}: {error}). Pass a "
            "Functional model of the same layers instead, keras.Model(inputs, outputs). If only "
            "the shapes of its arguments are unknown, keras.Model(inputs, model(inputs)) is one, "
            "with a keras.Input for each argument."
        ) from error


def _arguments_of_build(model: Model, *, training: bool) -> tuple[Args, Kwargs]:
    """Symbolic arguments for `call`, with the shapes that a model was built with."""
    shapes = build_shapes(model)
    if not shapes:
        raise ValueError("Keras did not record the shapes it was built with")
    kwargs = {"training": True} if training else {}
    tensors = [_symbolic_structure(shape) for shape in shapes.values()]
    if len(shapes) == 1:
        return tensors, kwargs
    names = [name.removesuffix("_shape") for name in shapes]
    return [], {**dict(zip(names, tensors, strict=True)), **kwargs}


def _symbolic_structure(shape: Nested) -> Nested:
    """Symbolic tensors in the structure of nested shapes."""
    if isinstance(shape, dict):
        return {key: _symbolic_structure(value) for key, value in shape.items()}
    if all(n is None or isinstance(n, int) for n in shape):
        return symbolic(tuple(shape))
    return type(shape)(_symbolic_structure(value) for value in shape)
