"""Checks of users' arguments, with error messages of one form."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Checks the arguments of a function or class; every message begins with its name, `owner`."""

    owner: str

    def error(
        self, name: str, value: object, wanted: str, kind: type[Exception] = ValueError
    ) -> Exception:
        """An error that says what an argument must be and what was received."""
        return kind(f"{self.owner}: `{name}` must be {wanted}. Received: {name}={value!r}.")

    def require(
        self,
        holds: bool,
        name: str,
        value: object,
        wanted: str,
        kind: type[Exception] = ValueError,
    ) -> None:
        """Raises this error unless a condition holds."""
        if not holds:
            raise self.error(name, value, wanted, kind)

    def number(
        self,
        name: str,
        value: Any,
        *,
        above: float | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> float:
        """A finite Python or NumPy number, not a boolean, within bounds."""
        self.require(is_real(value), name, value, "a number", TypeError)
        number = float(value)
        bounds = []
        if above is not None:
            bounds.append((number > above, f"greater than {above:g}"))
        if at_least is not None:
            bounds.append((number >= at_least, f"at least {at_least:g}"))
        if at_most is not None:
            bounds.append((number <= at_most, f"at most {at_most:g}"))
        wanted = " and ".join(["finite", *(text for _, text in bounds)])
        holds = math.isfinite(number) and all(holds for holds, _ in bounds)
        self.require(holds, name, value, wanted)
        return number

    def count(self, name: str, value: Any, *, wanted: str = "a positive integer") -> int:
        """A positive integer."""
        self.require(is_integer(value) and value >= 1, name, value, wanted)
        return int(value)

    def count_or_none(self, name: str, value: Any) -> int | None:
        """A positive integer or None."""
        if value is None:
            return None
        return self.count(name, value, wanted="a positive integer or None")

    def flag(self, name: str, value: object, *, or_none: bool = False) -> None:
        """True or False, or None if `or_none`."""
        allowed = isinstance(value, bool) or (or_none and value is None)
        self.require(allowed, name, value, "a bool or None" if or_none else "a bool", TypeError)

    def choice(self, name: str, value: object, choices: Sequence[str]) -> str:
        """One of several strings."""
        kind = ValueError if isinstance(value, str) else TypeError
        wanted = "one of " + ", ".join(repr(choice) for choice in choices)
        if not (isinstance(value, str) and value in choices):
            error = self.error(name, value, wanted, kind)
            raise kind(f"{error}{did_you_mean(value, choices)}")
        return value

    def verbose(self, value: object) -> None:
        """`verbose` as in `keras.Model.fit`, except for 2."""
        allowed = value == "auto" or (is_integer(value) and value in (0, 1))
        self.require(allowed, "verbose", value, '"auto", 0 or 1')

    def seed(self, value: Any, name: str = "seed") -> int | None:
        """A seed as a Python integer, or None."""
        if value is None:
            return None
        wanted = "an integer or None (calls are pure, so a SeedGenerator cannot be used)"
        self.require(is_integer(value), name, value, wanted, TypeError)
        return int(value)


def is_integer(value: object) -> bool:
    """Whether a value is a Python or NumPy integer; booleans are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a real number of Python or NumPy; booleans are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """A hint, to end an error message, with those of some names that are most like a wrong one."""
    near = difflib.get_close_matches(name, sorted(names), n=3) if isinstance(name, str) else []
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
