"""The registry: what is known of a layer class or a raw operation, in one table.

An entry has up to three rules. `role` says what an operation is to the stages between kernels,
`signal` what it does to moments and gradients, and `rows` what it does to the rows of attention
written by hand. A rule is found by the operation's class and its bases, the most specific first, or
by name for operations of `keras.ops`; each of the three is looked up by itself.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import keras

from keras_varinit.keras_private import is_raw_operation, operation_name
from keras_varinit.signals.outcome import Outcome, Signal, Visit
from keras_varinit.signals.roles import Call, Role, Unknown

Kind = type | str
RoleRule = Callable[[Call], Role]
SignalRule = Callable[[Visit], Outcome | Signal]
RowRule = Callable[[Visit], Outcome | None]
Field = Literal["role", "signal", "rows"]

_AnyRule = TypeVar("_AnyRule", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Entry:
    """The rules of one kind of operation; None where there is none."""

    role: RoleRule | None = None
    signal: SignalRule | None = None
    rows: RowRule | None = None


_ENTRIES: dict[Kind, Entry] = {}
# What was looked up before, until something is registered.
_LOOKED_UP: dict[tuple[Kind, Field], Callable[..., Any] | None] = {}
_KEEPING_CHANNEL_AXES: set[Callable[..., Any]] = set()


def _registering(field: Field, kinds: Iterable[Kind]) -> Callable[[_AnyRule], _AnyRule]:
    def decorate(function: _AnyRule) -> _AnyRule:
        _LOOKED_UP.clear()
        for kind in kinds:
            entry = _ENTRIES.get(kind, Entry())
            _ENTRIES[kind] = dataclasses.replace(entry, **{field: function})
        return function

    return decorate


def role_rule(*kinds: Kind) -> Callable[[_AnyRule], _AnyRule]:
    """Decorator: registers the role of layer classes (with subclasses) and named operations."""
    return _registering("role", kinds)


@dataclasses.dataclass(frozen=True)
class Constant:
    """The role rule of operations all of whose calls have one role."""

    role: Role

    def __call__(self, call: Call) -> Role:
        """The role."""
        return self.role


def constant_role(role: Role, *kinds: Kind) -> None:
    """Registers a role that all calls of an operation have."""
    _registering("role", kinds)(Constant(role))


def signal_rule(*kinds: Kind) -> Callable[[_AnyRule], _AnyRule]:
    """Decorator: registers what layers of a class (and its subclasses) do to signals.

    The function takes a `Visit` and returns the output's `Signal`, or an `Outcome` that also says
    how gradients come back; without that, gradients come back with the change of scale that the
    signal went through.

    Args:
        *kinds: Layer classes, and names of operations of `keras.ops` such as "Relu".

    Raises:
        TypeError: a kind is neither a class nor a name.

    Example:
        >>> import keras, keras_varinit as kv
        >>> class Halve(keras.layers.Layer):
        ...     def call(self, x):
        ...         return x / 2
        >>> @kv.signal_rule(Halve)
        ... def halve(visit):
        ...     return visit.inputs[0].scaled(0.25)
    """
    for kind in kinds:
        if not isinstance(kind, type | str):
            raise TypeError(
                f"signal_rule: takes layer classes and names of operations. Received: {kind!r}."
            )
    return _registering("signal", kinds)


def row_rule(*kinds: Kind) -> Callable[[_AnyRule], _AnyRule]:
    """Decorator: registers what an operation does to signals with rows; None where it is no use."""
    return _registering("rows", kinds)


def follows_channel_axes(function: _AnyRule) -> _AnyRule:
    """Decorator: marks a signal rule that takes signals with `other_axes` as they are.

    All other rules get such signals with their channels in one dimension.
    """
    _KEEPING_CHANNEL_AXES.add(function)
    return function


def takes_channel_axes(function: SignalRule) -> bool:
    """Whether a rule takes signals with channels in several dimensions."""
    return function in _KEEPING_CHANNEL_AXES


def _rule_of(operation: Any, field: Field) -> Any:
    """The most specific rule for an operation, or None."""
    kind = operation_name(operation) if is_raw_operation(operation) else type(operation)
    if (kind, field) not in _LOOKED_UP:
        kinds = (kind,) if isinstance(kind, str) else kind.__mro__
        rules = (getattr(_ENTRIES[k], field) for k in kinds if k in _ENTRIES)
        _LOOKED_UP[kind, field] = next((rule for rule in rules if rule is not None), None)
    return _LOOKED_UP[kind, field]


def role_of(call: Call) -> Role:
    """The role of a call; `Unknown` without a rule."""
    rule: RoleRule | None = _rule_of(call.operation, "role")
    return Unknown() if rule is None else rule(call)


def signal_rule_of(operation: Any) -> SignalRule | None:
    """The rule of what an operation does to signals, or None."""
    rule: SignalRule | None = _rule_of(operation, "signal")
    return rule


def row_rule_of(operation: Any) -> RowRule | None:
    """The rule of what an operation does to rows of attention, or None."""
    rule: RowRule | None = _rule_of(operation, "rows")
    return rule


def has_role_rule(operation: Any) -> bool:
    """Whether it is known what an operation is to a stage."""
    return _rule_of(operation, "role") is not None


def has_signal_rule(operation: Any) -> bool:
    """Whether it is known what an operation does to signals."""
    return _rule_of(operation, "signal") is not None


def has_own_rule(cls: type) -> bool:
    """Whether a role or a signal rule was registered for that very class."""
    entry = _ENTRIES.get(cls, Entry())
    return entry.role is not None or entry.signal is not None


def registered(field: Field) -> dict[Kind, Callable[..., Any]]:
    """The rules of that kind by layer class or name of an operation."""
    rules = {kind: getattr(entry, field) for kind, entry in _ENTRIES.items()}
    return {kind: rule for kind, rule in rules.items() if rule is not None}


def layer_classes(*names: str) -> tuple[type, ...]:
    """Classes of `keras.layers` by name; those that the installed Keras lacks are left out."""
    classes = (getattr(keras.layers, name, None) for name in names)
    return tuple(cls for cls in classes if cls is not None)
