"""The plan of `initialize`: what is drawn for each weight, before anything changes."""

import dataclasses
import functools
import math
import numbers
import random
from collections.abc import Callable

import keras

from keras_varinit import keras_private
from keras_varinit.analysis.planned import with_signal_gains
from keras_varinit.analysis.result import Reading
from keras_varinit.apply.recommend import NO_INITIALIZER, own_initializer
from keras_varinit.apply.report import DRAWN, ReportRow
from keras_varinit.apply.transaction import (
    Change,
    as_called,
    drawn_value,
    forget_gate_is_one,
    moved,
    moves_until_free,
)
from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.laws import as_drawn, describe, for_kernel, reseeded
from keras_varinit.initializers.recommended import Recommended
from keras_varinit.initializers.streams import stream_seed
from keras_varinit.sharding import Layout, everywhere
from keras_varinit.tensors import Digests, digests
from keras_varinit.tracing.names import variable_names
from keras_varinit.typing import ArrayLike, Initializer, Layer, Model, Variable


def _checked(scheme: Initializer | None, context: LayerContext) -> Initializer | None:
    """The scheme of a kernel, if it draws kernels."""
    if isinstance(scheme, ContextualInitializer) and "kernel" not in scheme.kinds:
        raise ValueError(
            f"initialize: `scheme` must draw kernels, but {type(scheme).__name__} "
            f"{scheme.purpose()}. It would have drawn {context.path!r}; build layers with it."
        )
    return scheme


@dataclasses.dataclass
class _Drawn:
    """A drawn kernel: the numbers of its change and row, and the group it is drawn with.

    `is_own` says that its layer's own initializer drew it.
    """

    change: int
    row: int
    layer: Layer
    scheme: Initializer
    context: LayerContext
    group: str | None
    is_own: bool


class Plan:
    """Collects report rows and changes; it draws values but does not assign them."""

    def __init__(
        self,
        model: Model,
        reading: Reading,
        seed: int | None,
        include_frozen: bool,
    ) -> None:
        self.model = model
        self.names = variable_names(model)
        self.reading = reading
        self.schemes: dict[int, Initializer | None] = {}
        self.by_own: set[int] = set()
        self.seed = seed
        self.root = random.randint(1, 10**9) if seed is None else seed
        self.include_frozen = include_frozen
        self.rows: list[ReportRow] = []
        self.changes: list[Change] = []
        self.notes: list[str] = list(reading.notes)
        self.kernels = 0
        self.drawn: list[_Drawn] = []

    def choose(
        self,
        resolve: Callable[[LayerContext], Initializer | None],
        layers: list[Layer],
        explicit: set[int],
    ) -> None:
        """Resolves the scheme of every kernel; of embeddings only if selected themselves."""
        for layer in layers:
            if isinstance(layer, keras.layers.Embedding) and id(layer) not in explicit:
                continue
            for variable in keras_private.own_variables(layer):
                context = self.reading.context_of(variable)
                if context is not None and self.reading.reason_to_leave(variable) is None:
                    scheme = _checked(resolve(context), context)
                    if isinstance(scheme, Recommended):
                        scheme = self._recommended(scheme, layer, variable, context)
                    self.schemes[id(variable)] = scheme

    def _recommended(
        self, scheme: Recommended, layer: Layer, variable: Variable, context: LayerContext
    ) -> Initializer:
        """The choice for a kernel: by a rule, or else the layer's own initializer."""
        own = own_initializer(layer, variable)
        choice = scheme.chosen(context, own)
        if choice is not None:
            return choice
        if own is None or isinstance(own, Recommended):
            return scheme
        self.by_own.add(id(variable))
        return own

    def choose_vectors(self, scheme: Initializer | None, layers: list[Layer]) -> None:
        """Draws biases and normalization scales by the scheme if it draws such."""
        for layer in layers:
            for variable in keras_private.own_variables(layer):
                context = self.reading.vector_of(variable)
                if (
                    context is not None
                    and isinstance(scheme, ContextualInitializer)
                    and context.kind in scheme.kinds
                ):
                    self.schemes[id(variable)] = (
                        scheme.chosen(context) if isinstance(scheme, Recommended) else scheme
                    )

    def find_signal_gains(self) -> None:
        """Completes the contexts of kernels whose schemes need signal gains."""
        variables = {id(v): v for v in self.model.variables}
        drawn = {
            key: scheme
            for key, scheme in self.schemes.items()
            if scheme is not None
            and (key not in variables or self._status(variables[key].trainable) == DRAWN)
        }
        self.reading = with_signal_gains(self.model, self.reading, drawn)
        self.notes = list(self.reading.notes)

    def add_layer(self, layer: Layer, explicit: set[int]) -> None:
        """Plans the variables that a layer itself created."""
        attributes = dict(keras_private.initializers_of(layer))
        for variable in keras_private.own_variables(layer):
            context = self.reading.context_of(variable)
            attribute = attributes.get(id(variable))
            by_scheme = id(layer) in explicit or not isinstance(layer, keras.layers.Embedding)
            reason = self.reading.reason_to_leave(variable)
            if reason is not None:
                self._leave(layer, variable, attribute, reason)
            elif context is not None and by_scheme:
                self._add_kernel(layer, variable, attribute, context)
            elif attribute is not None:
                self._add_other(layer, variable, attribute)
            elif keras.backend.is_float_dtype(variable.dtype):
                reason = self.reading.reason_listed(variable) or NO_INITIALIZER
                self._leave(layer, variable, None, reason)

    def _add_kernel(
        self, layer: Layer, variable: Variable, attribute: str | None, context: LayerContext
    ) -> None:
        scheme = self.schemes.get(id(variable))
        if scheme is None:
            return
        self.kernels += 1
        is_own = id(variable) in self.by_own
        initializer = self._for_kernel(layer, scheme, context, is_own)
        shape = context.kernel_shape
        stddev = describe(initializer, shape, context if _is_ours(initializer) else None).stddev
        status = self._status(variable.trainable)
        row = ReportRow(context.path, context.layer, type(scheme).__name__, context, stddev, status)
        self.rows.append(row)
        if status == DRAWN:
            value = functools.partial(drawn_value, initializer, variable, context.path)
            group = context.group if _is_ours(initializer) and initializer.shares_group else None
            places = len(self.changes), len(self.rows) - 1
            self.drawn.append(_Drawn(*places, layer, scheme, context, group, is_own))
            self.changes.append(Change(variable, value, layer, attribute, initializer))

    def _leave(self, layer: Layer, variable: Variable, attribute: str | None, reason: str) -> None:
        name = "-" if attribute is None else type(getattr(layer, attribute)).__name__
        row = ReportRow(variable.path, layer.name, name, None, None, f"skipped: {reason}")
        self.rows.append(row)

    def _for_kernel(
        self, layer: Layer, scheme: Initializer, context: LayerContext, is_own: bool
    ) -> keras.initializers.Initializer:
        if _is_ours(scheme):
            own = scheme.seed if self.seed is None else self.seed
            if own is None and scheme.with_context(context).shares_group:
                own = self.root
            return reseeded(scheme, own).with_context(context)
        seed = self._seed_for(scheme, context.stream)
        if is_own:
            return reseeded(as_drawn(layer, scheme), seed) if _takes_seed(scheme) else scheme
        correction = describe(as_drawn(layer, scheme), context.kernel_shape, context).correction
        if not math.isclose(correction, 1, rel_tol=1e-9):
            note = (
                f"{context.path}: Keras's {type(scheme).__name__} miscounts this kernel's fans; "
                f"its standard deviation was multiplied by {correction:.4g}"
            )
            if note not in self.notes:
                self.notes.append(note)
        return for_kernel(scheme, context, seed)

    def _seed_for(self, initializer: Initializer, stream: str) -> int:
        own = initializer.get_config().get("seed")
        root = int(own) if self.seed is None and isinstance(own, numbers.Integral) else self.root
        return stream_seed(root, stream)

    def keep_apart(self) -> None:
        """Redraws, in another stream, kernels that equal one that is not redrawn.

        The latter was drawn from this seed as part of another model, and is now frozen or not
        selected. Kernels without variance, such as zeros, may be equal.
        """
        changed = {id(change.variable) for change in self.changes}
        kept: dict[tuple[int, ...], set[Digests]] = {}
        for layer in [self.model, *keras_private.layers_of(self.model)]:
            for variable in keras_private.own_variables(layer):
                is_kernel = self.reading.context_of(variable) is not None
                has_value = keras_private.has_value(variable)
                if is_kernel and has_value and id(variable) not in changed:
                    kept.setdefault(tuple(variable.shape), set()).add(digests(variable))
        moves = [self._moves_away_from(kept, drawn) for drawn in self.drawn]
        together: dict[str, int] = {}
        for drawn, count in zip(self.drawn, moves, strict=True):
            if drawn.group is not None:
                together[drawn.group] = max(count, together.get(drawn.group, 0))
        for drawn, count in zip(self.drawn, moves, strict=True):
            count = count if drawn.group is None else together[drawn.group]
            if count:
                context = moved(drawn.context, count)
                self.changes[drawn.change] = self._redrawn(drawn, context)
                self.rows[drawn.row] = dataclasses.replace(self.rows[drawn.row], context=context)

    def _moves_away_from(self, kept: dict[tuple[int, ...], set[Digests]], drawn: _Drawn) -> int:
        """How often a kernel moves to another stream until it equals none that is kept."""
        change = self.changes[drawn.change]
        others = kept.get(tuple(change.variable.shape), set())
        if self.rows[drawn.row].stddev == 0 or not others:
            return 0

        def is_taken(context: LayerContext) -> bool:
            again = change if context is drawn.context else self._redrawn(drawn, context)
            value = again.value()
            return everywhere(digests(value) in others, [value])

        # Each kept kernel can block one stream; a draw equal in all of them is a constant.
        return moves_until_free(drawn.context, is_taken, most=len(others))

    def _redrawn(self, drawn: _Drawn, context: LayerContext) -> Change:
        """The change of a kernel, drawn for another context."""
        change = self.changes[drawn.change]
        initializer = self._for_kernel(drawn.layer, drawn.scheme, context, drawn.is_own)
        value = functools.partial(drawn_value, initializer, change.variable, context.path)
        return dataclasses.replace(change, value=value, initializer=initializer)

    def _status(self, trainable: bool) -> str:
        """A frozen model trains nothing, whatever its layers say."""
        if self.include_frozen or (trainable and self.model.trainable):
            return DRAWN
        return "skipped: frozen (trainable=False)"

    def _add_other(self, layer: Layer, variable: Variable, attribute: str) -> None:
        initializer = self.schemes.get(id(variable)) or getattr(layer, attribute)
        context = self.reading.vector_of(variable)
        if isinstance(initializer, ContextualInitializer):
            if context is not None and context.kind in initializer.kinds:
                self._add_vector(layer, variable, attribute, initializer, context)
                return
            # One that is for other weights draws as without a context; `lint` says so.
            initializer = initializer.with_context(None)
        path, _, stream = self.names[id(variable)]
        status = self._status(layer.trainable)
        self.rows.append(
            ReportRow(path, layer.name, type(initializer).__name__, None, None, status)
        )
        if status != DRAWN:
            return
        if _takes_seed(initializer):
            initializer = reseeded(initializer, stream_seed(self.root, stream))
        value = functools.partial(drawn_value, initializer, variable, path)
        if attribute == "bias_initializer" and forget_gate_is_one(layer):
            value = functools.partial(_with_open_forget_gate, value)
        self.changes.append(Change(variable, value, layer, None, initializer))

    def _add_vector(
        self,
        layer: Layer,
        variable: Variable,
        attribute: str,
        initializer: ContextualInitializer,
        context: LayerContext,
    ) -> None:
        """Plans a bias or γ that an initializer of this library owns."""
        name, shape = type(initializer).__name__, tuple(variable.shape)
        if "seed" in initializer.get_config():
            own = initializer.seed if self.seed is None else self.seed
            initializer = reseeded(initializer, own)
        initializer = initializer.with_context(context)
        status, stddev = self._status(variable.trainable), initializer.stddev(shape)
        self.rows.append(ReportRow(context.path, layer.name, name, context, stddev, status))
        if status == DRAWN:
            draws = as_called(initializer, layer, attribute)
            value = functools.partial(drawn_value, draws, variable, context.path)
            self.changes.append(Change(variable, value, layer, attribute, initializer))


def _with_open_forget_gate(
    draw: Callable[..., ArrayLike], layout: Layout | None = None
) -> ArrayLike:
    """The bias of an LSTM as Keras makes it: of four gates, the second one's is 1."""
    first, second, *rest = keras.ops.split(draw(layout=layout), 4)
    return keras.ops.concatenate([first, keras.ops.ones_like(second), *rest])


def _takes_seed(initializer: Initializer) -> bool:
    return "seed" in initializer.get_config()


def _is_ours(initializer: Initializer) -> bool:
    return isinstance(initializer, ContextualInitializer)
