"""Opening a model: from the model to its graph, with examples in place of unknown lengths."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_varinit.analysis.reader import Graph, Reader
from keras_varinit.graph import build_shapes, check_built, functional_of, shape_of, symbolic
from keras_varinit.reading import reading, trusting_calls
from keras_varinit.recording import (
    Recorded,
    common_shape,
    loses_sizes,
    recorded_call,
    recorded_model,
    with_sizes,
)


class NotFollowedError(ValueError):
    """A model's own `call` cannot be followed on symbolic tensors."""


# Two examples of an unknown length; what differs between them is unknown. Short ones first: a
# table of positions has an end. Longer ones are for what strides and unpadded windows shorten.
_Sizes = tuple[int | None, int | None]
_LENGTHS = ((8, 6), (64, 80), (512, 640), (4096, 4608))


def build_graph(
    model: Any, is_known: Callable[[Any], bool], *, training: bool = False, examples: bool = True
) -> Graph:
    """Reads the graph of a built model.

    Where a layer cannot be opened and lengths are unknown, the whole model is read again with
    examples in their place, so that lengths that belong together are the same everywhere.

    Args:
        model: A built `keras.Model`.
        is_known: Says of a layer whether it is one node; any other layer is opened.
        training: Whether models and layers with their own `call` are called as in training.
        examples: Whether unknown lengths may be replaced. Such a graph cannot be run on others.

    Raises:
        TypeError: not a Keras model.
        ValueError: the model is not built.
        NotFollowedError: its `call` cannot be followed.
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
    """The graph, of several attempts, in which the fewest weights are hidden."""

    def __init__(self) -> None:
        self.graph: Graph | None = None
        self.failure: Exception | None = None

    def consider(self, attempt: Callable[[], Graph]) -> bool:
        """Returns whether an attempt is at least as good as those before.

        Of two that are as good, the later one tells the reasons that are left.
        """
        try:
            graph = attempt()
        except Exception as error:  # an example may be too short, or a table not long enough
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
    model: Any, is_known: Callable[[Any], bool], training: bool, sizes: _Sizes | None = None
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
        recorded = recorded_call(functional, [with_sizes(functional.input, *sizes)], {})
    graph = reader.graph
    graph.inputs = tuple(graph.new_tensor(recorded.shape_of(t)) for t in recorded.inputs)
    graph.outputs = reader.inline(recorded, graph.inputs)
    return graph


def _read_without_lengths(
    model: Any, is_known: Callable[[Any], bool], training: bool, lengths: tuple[int, int]
) -> Graph:
    """The graph at the first of two examples of the unknown sizes, which stay unknown.

    Raises:
        ValueError: what the model does depends on them.
    """
    one, two = (
        _read(model, is_known, training, sizes) for sizes in zip((2, 3), lengths, strict=True)
    )
    kinds = [
        [(type(n.operation), n.inputs, n.outputs) for n in graph.nodes] for graph in (one, two)
    ]
    if kinds[0] != kinds[1] or len(one.shapes) != len(two.shapes):
        raise ValueError("what the model does depends on a length that is not known")
    one.shapes = [common_shape(a, b) for a, b in zip(one.shapes, two.shapes, strict=True)]
    return one


def _has_unknown_size(model: Any) -> bool:
    functional = functional_of(model)
    if functional is not None:
        shapes = [shape_of(tensor) for tensor in functional.inputs]
    else:
        flat = keras.tree.flatten(list(build_shapes(model).values()))
        shapes = [(None, *flat)]
    return any(None in shape for shape in shapes)


def _recorded_root(model: Any, training: bool, sizes: _Sizes | None) -> Recorded:
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
            "the shapes of its arguments are not known, keras.Model(inputs, model(inputs)) is one, "
            "with a keras.Input for each argument."
        ) from error


def _arguments_of_build(model: Any, *, training: bool) -> tuple[list[Any], dict[str, Any]]:
    """Symbolic arguments for `call`, of the shapes that a model was built with."""
    shapes = build_shapes(model)
    if not shapes:
        raise ValueError("the shapes that it was built with are not recorded")
    kwargs = {"training": True} if training else {}
    tensors = [_symbolic_structure(shape) for shape in shapes.values()]
    if len(shapes) == 1:
        return tensors, kwargs
    names = [name.removesuffix("_shape") for name in shapes]
    return [], {**dict(zip(names, tensors, strict=True)), **kwargs}


def _symbolic_structure(shape: Any) -> Any:
    """Symbolic tensors in the structure of nested shapes."""
    if isinstance(shape, dict):
        return {key: _symbolic_structure(value) for key, value in shape.items()}
    if all(n is None or isinstance(n, int) for n in shape):
        return symbolic(tuple(shape))
    return type(shape)(_symbolic_structure(value) for value in shape)
