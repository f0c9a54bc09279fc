"""Rules of operations that have none of their own, by the role that they share."""

from keras_varinit.analysis import (
    concatenating_signals,
    contraction_signals,
    merging_signals,
    pointwise_signals,
    weight_signals,
)
from keras_varinit.analysis.catalogue import reason_of
from keras_varinit.analysis.rules import Concatenation, Elementwise, Merge, Role, Unknown, Weights
from keras_varinit.analysis.signals import SignalRule, Visit
from keras_varinit.graph import is_raw_operation, operation_name


def rule_of_role(role: Role, *, raw: bool) -> SignalRule | None:
    """The rule of what several operations have in common; None where a role says too little."""
    if isinstance(role, Weights):
        return contraction_signals.raw_kernels if raw else weight_signals.general_kernels
    if isinstance(role, Elementwise):
        return pointwise_signals.elementwise
    if isinstance(role, Merge):
        return merging_signals.merged
    if isinstance(role, Concatenation):
        return concatenating_signals.concatenated
    return None


def reason_against(visit: Visit) -> str:
    """Why an operation that has no rule is not known."""
    if is_raw_operation(visit.operation):
        return reason_of(operation_name(visit.operation))
    return visit.role.reason if isinstance(visit.role, Unknown) else "it is not modelled"
