"""`lint`: mistakes in a model's initialization."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import ClassVar

import keras
import numpy as np

from keras_varinit import keras_private
from keras_varinit.analysis.contexts import read
from keras_varinit.analysis.result import Reading
from keras_varinit.apply.owners import owners
from keras_varinit.apply.recommend import own_initializer
from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import ContextualInitializer
from keras_varinit.initializers.laws import as_drawn, describe
from keras_varinit.results import Results, Row
from keras_varinit.sharding import Index, gathered, is_replicated, layout_of, replicas_of
from keras_varinit.tables import Column
from keras_varinit.tensors import (
    Digests,
    digest,
    digests,
    is_constant,
    local_parts,
    moments,
)
from keras_varinit.typing import Layer, Model, Variable

_DEAD, _EXPLODED = 1e-6, 1e6

RULES = (
    "equal-weights",
    "wrong-fans",
    "not-injected",
    "wrong-kind",
    "unknown-layer",
    "vanishing-scale",
    "exploding-scale",
)

Owned = dict[int, ContextualInitializer]


@dataclasses.dataclass(frozen=True)
class Finding(Row):
    """A mistake in a model's initialization.

    Args:
        rule: `"equal-weights"`, `"equal-shards"`, `"unequal-replicas"`, `"never-drawn"`,
            `"wrong-fans"`, `"not-injected"`, `"wrong-kind"`, `"unknown-layer"`,
            `"vanishing-scale"` or `"exploding-scale"`.
        path: Path of the weight, or name of the layer.
        message: What is wrong, and how to fix it.
    """

    rule: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}: {self.message}"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Findings(Results[Finding]):
    """The findings of `lint`; see `Results` for what all reports share.

    It is false if there are none, and equal to a list of the same findings.

    Attributes:
        rows: The `Finding` objects.
    """

    rows: tuple[Finding, ...]

    _row: ClassVar[type[Row]] = Finding
    _columns: ClassVar[tuple[Column, ...]] = (
        Column("where", kind="path"),
        Column("rule"),
        Column("what is wrong, and how to fix it", kind="prose"),
    )
    _main: ClassVar[str] = "findings"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Iterable) and list(self.rows) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _cells(self, row: Finding) -> tuple[str, ...]:
        return row.path, row.rule, row.message

    def _label(self, row: Finding) -> str:
        return row.rule

    def _summary(self) -> tuple[str, ...]:
        count = len(self.rows)
        return (f"{count or 'no'} finding{'' if count == 1 else 's'}",)


def lint(model: keras.Model) -> Findings:
    """Finds mistakes in the initialization of a built model, without changing it.

    * `equal-weights`: layers whose random kernels are equal, as when they share one initializer
      object: Keras's initializers draw the same values at every call.
    * `equal-shards`: shards of one random kernel that are equal, as when each device drew its own
      from one seed.
    * `unequal-replicas`: copies of one weight on several devices that differ.
    * `never-drawn`: a kernel whose entries are all equal, or not numbers, although its initializer
      draws random ones.
    * `wrong-fans`: a variance-scaling initializer of Keras on a kernel whose fans it miscounts.
    * `not-injected`: an initializer of this library that has no context.
    * `wrong-kind`: an initializer for kernels on a bias or γ, or the reverse.
    * `unknown-layer`: weights whose use is unknown, so that they can be neither judged nor drawn.
    * `vanishing-scale`, `exploding-scale`: with the present weights, the second moment of a
      kernel's output is below 1e-6 or above 1e6 for white noise of unit variance at the input,
      to first order; only the first such kernel is reported.

    Args:
        model: A built `keras.Model` of any kind.

    Returns:
        `Findings`, a sequence of `Finding`, empty for a healthy model.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not built, or its own `call` cannot be traced symbolically.

    Example:
        >>> import keras, keras_varinit as kv
        >>> one = keras.initializers.HeNormal()
        >>> layers = [keras.layers.Dense(8, kernel_initializer=one) for _ in range(2)]
        >>> [finding.rule for finding in kv.lint(keras.Sequential([keras.Input((8,)), *layers]))]
        ['equal-weights']
    """
    reading = read(model)
    owned = {
        id(variable): initializer
        for layer in [model, *keras_private.layers_of(model)]
        for _, variable, initializer in owners(layer)
    }
    findings = [
        *_equal_weights(model, reading, owned),
        *_never_drawn(model, reading, owned),
        *_equal_shards(model, reading),
        *_unequal_replicas(model),
        *_wrong_fans(model, reading),
        *_not_injected(model, reading, owned),
        *(
            Finding("unknown-layer", name, f"{reason}; register a rule, or initialize it by hand")
            for name, reason in reading.unknown
        ),
        *_scales(reading, owned),
    ]
    return Findings(tuple(findings))


def _kernels(model: Model, reading: Reading) -> Iterator[tuple[Layer, Variable, LayerContext]]:
    """Layer, variable and context of every known kernel."""
    for layer in [model, *keras_private.layers_of(model)]:
        for variable in keras_private.own_variables(layer):
            context = reading.context_of(variable)
            if context is not None:
                yield layer, variable, context


def _filled(model: Model, reading: Reading) -> Iterator[tuple[Layer, Variable, LayerContext]]:
    """Those that have a value."""
    return (each for each in _kernels(model, reading) if keras_private.has_value(each[1]))


def _is_constant(variable: Variable, owned: Owned) -> bool:
    """Whether one of our initializers drew a kernel without variance: zeros, or an identity."""
    initializer = owned.get(id(variable))
    if initializer is None or initializer.context is None:
        return False
    return initializer.stddev(tuple(int(n) for n in variable.shape)) == 0


def _equal_weights(model: Model, reading: Reading, owned: Owned) -> Iterator[Finding]:
    first: dict[tuple[tuple[int, ...], str, Digests], str] = {}
    for layer, variable, context in _filled(model, reading):
        # Not trained in a layer that is: a table, such as the frequencies of rotary positions.
        is_table = layer.trainable and not variable.trainable
        if is_table or is_constant(variable) or _is_constant(variable, owned):
            continue
        shape = tuple(int(n) for n in variable.shape)
        earlier = first.setdefault((shape, variable.dtype, digests(variable)), context.path)
        if earlier != context.path:
            yield Finding(
                "equal-weights",
                context.path,
                f"has the same values as {earlier!r}. Give each layer an initializer object of its "
                "own, or a string id, or call keras_varinit.initialize",
            )


def _never_drawn(model: Model, reading: Reading, owned: Owned) -> Iterator[Finding]:
    for layer, variable, context in _filled(model, reading):
        initializer = owned.get(id(variable)) or own_initializer(layer, variable)
        if initializer is None or math.prod(variable.shape) < 2 or not is_constant(variable):
            continue
        if describe(
            initializer, tuple(variable.shape), getattr(initializer, "context", None)
        ).stddev:
            yield Finding(
                "never-drawn",
                context.path,
                f"all its entries are equal or not numbers, although {type(initializer).__name__} "
                "draws random ones. Call keras_varinit.initialize, or load its values",
            )


def _equal_shards(model: Model, reading: Reading) -> Iterator[Finding]:
    for _, variable, context in _filled(model, reading):
        first: dict[tuple[tuple[int, ...], bytes], Index] = {}
        for index, values in local_parts(variable).items():
            if is_constant(values):
                continue
            earlier = first.setdefault((values.shape, digest(values)), index)
            if earlier != index:
                yield Finding(
                    "equal-shards",
                    context.path,
                    f"its shards at {_shown(earlier)} and {_shown(index)} are equal. Draw it with "
                    "an initializer that takes `layout`, or call keras_varinit.initialize",
                )
                break


def _unequal_replicas(model: Model) -> Iterator[Finding]:
    for variable in filter(keras_private.has_value, model.variables):
        value = variable.value
        copies = replicas_of(value)
        differ = any(len(set(map(digest, arrays))) > 1 for arrays in copies.values())
        if copies and is_replicated(layout_of(value)):
            own = np.frombuffer(digest(next(iter(copies.values()))[0]), np.uint8)
            differ |= bool(np.ptp(gathered(own, value), axis=0).any())
        if differ:
            yield Finding(
                "unequal-replicas",
                variable.path,
                "its copies on several devices differ, so they would be trained apart. Assign it "
                "once, or seed all hosts alike: keras.distribution.initialize()",
            )


def _shown(index: Index) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in index) + "]"


def _wrong_fans(model: Model, reading: Reading) -> Iterator[Finding]:
    for layer, variable, context in _kernels(model, reading):
        attribute = dict(keras_private.initializers_of(layer)).get(id(variable))
        initializer = None if attribute is None else getattr(layer, attribute)
        if not isinstance(initializer, keras.initializers.VarianceScaling):
            continue
        if isinstance(layer, keras.layers.Embedding):
            continue
        drawn = describe(as_drawn(layer, initializer), context.kernel_shape, None).stddev
        right = describe(initializer, context.kernel_shape, context).stddev
        if drawn is None or right is None or math.isclose(drawn, right, rel_tol=1e-6):
            continue
        name = type(initializer).__name__
        yield Finding(
            "wrong-fans",
            context.path,
            f"Keras's {name} draws with standard deviation {drawn:.4g}; the kernel's true fans "
            f"({context.fan_in:g}, {context.fan_out:g}) give {right:.4g}. "
            "keras_varinit.initialize(model, scheme) corrects it",
        )


def _not_injected(model: Model, reading: Reading, owned: Owned) -> Iterator[Finding]:
    for layer in [model, *keras_private.layers_of(model)]:
        for variable in keras_private.own_variables(layer):
            initializer = owned.get(id(variable))
            context = reading.surroundings_of(variable)
            if initializer is None or context is None:
                continue
            name = type(initializer).__name__
            if context.kind not in initializer.kinds:
                yield Finding(
                    "wrong-kind",
                    context.path,
                    f"{name} {initializer.purpose()}, and this is a {context.kind}. Give the layer "
                    "another initializer for it",
                )
            elif initializer.context is None:
                yield Finding(
                    "not-injected",
                    context.path,
                    f"{name} has no context, so it drew its neutral case. Call "
                    "keras_varinit.inject(model), or fit with keras_varinit.ContextInjector()",
                )


def _scales(reading: Reading, owned: Owned) -> Iterator[Finding]:
    """The first kernel whose output vanishes and the first whose output explodes.

    Predicted by the signal engine from the second moments of the present kernels. A kernel that is
    zero because its initializer makes it so, or because it ends a residual branch, is not a
    finding.
    """
    zeros: set[int] = set()

    def second_moment(variable: Variable, gain: float) -> float:
        if _is_constant(variable, owned):
            zeros.add(id(variable))
        return moments(variable)[1] if keras_private.has_value(variable) else math.nan

    def is_delta(variable: Variable) -> bool:
        initializer = owned.get(id(variable))
        return initializer is not None and initializer.reads_centre_only(
            tuple(int(n) for n in variable.shape)
        )

    predictions, _ = reading.predict(second_moment, backward=False, is_delta=is_delta)
    dead = exploded = False
    for key, prediction in predictions.items():
        context, scale = reading.by_variable.get(key), prediction.forward
        if context is None or scale is None:
            continue
        if scale == 0 and (key in zeros or context.branch_end):
            continue
        if scale < _DEAD and not dead:
            dead = True
            yield Finding(
                "vanishing-scale",
                context.path,
                f"the second moment of its output is about {scale:.1e} for unit white noise at "
                "the input. Scale the kernels up: "
                "keras_varinit.initialize(model, 'signal_preserving')",
            )
        elif not scale <= _EXPLODED and not exploded:
            exploded = True
            yield Finding(
                "exploding-scale",
                context.path,
                f"the second moment of its output is about {scale:.1e} for unit white noise at "
                "the input. Scale the kernels down: "
                "keras_varinit.initialize(model, 'signal_preserving')",
            )
