"""What gradients have in common, between positions and along shortcuts, where it decides."""

from keras import ops

from tests.families.rule_cases.case import (
    FINITE,
    MAPS,
    VECTOR,
    Allowance,
    Case,
    L,
    conv,
    dense,
    maps,
    vector,
)

# Gradients of neighbours correlate beyond the next position too, which counts as nothing.
NEXT = Allowance(0.05, 0.25, "gradients of positions two apart count as uncorrelated")


def after_the_sum(u):
    """Three residual blocks of the first kind: the activation follows the sum."""
    x = ops.relu(u)
    for _ in range(3):
        x = ops.relu(x + dense(kernel_initializer="glorot_normal")(dense(activation="relu")(x)))
    return dense()(x)


def mean(size, stride=1):
    return L.AveragePooling2D(size, stride, padding="same")


def means_in_a_row(u):
    """Windows overlap, so that neighbours get gradients alike, which the first mean adds up."""
    return conv(64)(mean(3)(ops.relu(conv(96, 1)(mean(3)(ops.relu(u))))))


CASES = (
    # An entry of the shortcut that its own activation passes makes the sum positive more often: as
    # if independent (`kept_together` off), the gradient is predicted 27 % too low.
    Case("Add", vector, after_the_sum, VECTOR, FINITE, "activation after the sum"),
    # Without what neighbours share (`local` zeroed), the gradient is predicted 74 % too low.
    Case(L.AveragePooling2D, maps, means_in_a_row, MAPS, NEXT, "two means", examples=4),
)
