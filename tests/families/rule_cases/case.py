"""What a case is, and the networks that most cases stand in."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

L = keras.layers
Kind = type | str


class Allowance(NamedTuple):
    """By how much of a second moment an approximation may be off, and why it is."""

    forward: float
    backward: float
    reason: str


EXACT = Allowance(0.0, 0.0, "")
# Moments of products, of three kernels in a row, and of functions that grow fast depend on widths.
FINITE = Allowance(0.03, 0.04, "widths count as large")


@dataclasses.dataclass(frozen=True)
class Case:
    """A minimal network around an operation; see the package."""

    kinds: Kind | tuple[Kind, ...]
    front: Callable[..., Any]
    back: Callable[..., Any]
    shape: Any
    allowance: Allowance = EXACT
    note: str = ""
    mean: float = 0.0
    inputs: Callable[..., Any] | None = None
    known: bool = True
    # Backends that cannot run the model, so that nothing is measured there.
    not_on: tuple[str, ...] = ()
    # What the rule gets wrong today: the case must fail, so that whoever mends it takes this away.
    wrong: str = ""
    # Draws go on until each mean is certain to `precision`; a draw is a batch of `examples`.
    precision: float = 0.01
    draws: int = 800
    examples: int = 8

    def __post_init__(self):
        if max(self.allowance[:2]) > 0 and not self.allowance.reason:
            raise ValueError(f"{self.name}: an allowance needs its reason")

    @property
    def all_kinds(self) -> tuple[Kind, ...]:
        """Also where there is one."""
        return self.kinds if isinstance(self.kinds, tuple) else (self.kinds,)

    @property
    def name(self) -> str:
        """For pytest."""
        kinds = "-".join(k if isinstance(k, str) else f"{k.__name__}_layer" for k in self.all_kinds)
        return f"{kinds}-{self.note}" if self.note else kinds


def dense(units=128, **options):
    return L.Dense(units, **{"kernel_initializer": "he_normal", **options})


def conv(filters=96, k=3, *, rank=2, **options):
    options = {"padding": "same", "kernel_initializer": "he_normal", **options}
    return getattr(L, f"Conv{rank}D")(filters, k, **options)


def vector(x):
    """For (256,): a vector of 128 independent entries."""
    return dense(128)(x)


def tokens(x):
    """For (10, 32): ten positions that have nothing in common."""
    return dense(96)(x)


def line(x):
    """For (16, 32): positions along a line, correlated."""
    return conv(96, rank=1)(L.ReLU()(conv(96, rank=1)(x)))


def maps(x):
    """For (8, 8, 24): correlated positions, by two convolutions with a ReLU between them."""
    return conv(96)(L.ReLU()(conv(96)(x)))


def volume(x):
    """For (4, 4, 4, 16): the same with three axes."""
    return conv(48, 2, rank=3)(L.ReLU()(conv(48, 2, rank=3)(x)))


VECTOR, TOKENS, LINE, MAPS, VOLUME = (256,), (10, 32), (16, 32), (8, 8, 24), (4, 4, 4, 16)
