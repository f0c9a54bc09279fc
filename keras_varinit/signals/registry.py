"""The registry of rules for layer classes and raw operations.

An entry has up to three rules: `role`, the operation's role in the stages between kernels;
`signal`, its effect on moments and gradients; and `rows`, its effect on the rows of hand-written
attention. Layers are looked up along their MRO, operations of `keras.ops` by name; each of the
three rules is looked up independently.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import keras

from keras_varinit.keras_private import is_raw_operation, operation_name
from keras_varinit.signals.outcome import Outcome, Signal, Visit
from keras_varinit.signals.roles import Call, Role, Unknown
from keras_varinit.typing import Operation

Kind = type | str
RoleRule = Callable[[Call], Role]
SignalRule = Callable[[Visit], Outcome | Signal]
RowRule = Callable[[Visit], Outcome | None]
Field = Literal["role", "signal", "rows"]

_AnyRule = TypeVar("_AnyRule", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Entry:
    """The rules of one kind of operation; None where it has none."""

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
    """A role rule that returns the same role for every call."""

    role: Role

    def __call__(self, call: Call) -> Role:
        """Returns the role."""
        return self.role


def constant_role(role: Role, *kinds: Kind) -> None:
    """Registers one role for all calls of the given kinds."""
    _registering("role", kinds)(Constant(role))


def signal_rule(*kinds: Kind) -> Callable[[_AnyRule], _AnyRule]:
    """Decorator: registers how layers of a class (and its subclasses) change signals.

    The function takes a `Visit` and returns either the `Signal` of the output or an `Outcome`,
    which adds a pullback for gradients. Without a pullback, the gradient's second moment is
    multiplied by the same factor as the signal's.

    Args:
        *kinds: Layer classes, and names of operations of `keras.ops` such as "Relu".

    Raises:
        TypeError: if a kind is neither a class nor a name.

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
    """Decorator: registers a rule for signals with rows, which may return None to decline."""
    return _registering("rows", kinds)


def follows_channel_axes(function: _AnyRule) -> _AnyRule:
    """Decorator: marks a signal rule that accepts signals with `other_axes`.

    All other rules receive such signals with their channels moved to one dimension.
    """
    _KEEPING_CHANNEL_AXES.add(function)
    return function


def takes_channel_axes(function: SignalRule) -> bool:
    """Whether a rule accepts signals with channels in several dimensions."""
    return function in _KEEPING_CHANNEL_AXES


def _rule_of(operation: Operation, field: Field) -> Any:
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


def signal_rule_of(operation: Operation) -> SignalRule | None:
    """The signal rule of an operation, or None."""
    rule: SignalRule | None = _rule_of(operation, "signal")
    return rule


def row_rule_of(operation: Operation) -> RowRule | None:
    """The row rule of an operation, or None."""
    rule: RowRule | None = _rule_of(operation, "rows")
    return rule


def has_role_rule(operation: Operation) -> bool:
    """Whether an operation has a role rule."""
    return _rule_of(operation, "role") is not None


def has_signal_rule(operation: Operation) -> bool:
    """Whether an operation has a signal rule."""
    return _rule_of(operation, "signal") is not None


def has_own_rule(cls: type) -> bool:
    """Whether a role or signal rule is registered for this class itself, not for a base."""
    entry = _ENTRIES.get(cls, Entry())
    return entry.role is not None or entry.signal is not None


def registered(field: Field) -> dict[Kind, Callable[..., Any]]:
    """All rules of one field, by layer class or name of an operation."""
    rules = {kind: getattr(entry, field) for kind, entry in _ENTRIES.items()}
    return {kind: rule for kind, rule in rules.items() if rule is not None}


def layer_classes(*names: str) -> tuple[type, ...]:
    """Classes of `keras.layers` by name, without those that the installed Keras lacks."""
    classes = (getattr(keras.layers, name, None) for name in names)
    return tuple(cls for cls in classes if cls is not None)
