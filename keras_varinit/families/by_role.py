"""Rules of operations that have none of their own, by the role that they share."""

from keras_varinit.families import activations, concatenation, kernels, linear, merging
from keras_varinit.families.catalogue import reason_of
from keras_varinit.keras_private import is_raw_operation, operation_name
from keras_varinit.signals.outcome import Visit
from keras_varinit.signals.registry import SignalRule
from keras_varinit.signals.roles import Concatenation, Elementwise, Merge, Role, Unknown, Weights


def rule_of_role(role: Role, *, raw: bool) -> SignalRule | None:
    """The rule of what several operations have in common; None where a role says too little."""
    if isinstance(role, Weights):
        return linear.raw_kernels if raw else kernels.general_kernels
    if isinstance(role, Elementwise):
        return activations.elementwise
    if isinstance(role, Merge):
        return merging.merged
    if isinstance(role, Concatenation):
        return concatenation.concatenated
    return None


def reason_against(visit: Visit) -> str:
    """Why an operation that has no rule is not known."""
    if is_raw_operation(visit.operation):
        return reason_of(operation_name(visit.operation))
    return visit.role.reason if isinstance(visit.role, Unknown) else "it is not modelled"
