"""Initializers by name, with the granularity and the concentration of the enhanced ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from common import initializers
from common.errors import UserError

#: How a name is written.
SYNTAX = (
    "an id of keras_varinit or Keras, kaiming_backward (2 / fan_out), or for the enhanced ones "
    "ID:GRANULARITY[:CONCENTRATION], as in enhanced_he_normal:position:2"
)
GRANULARITIES = ("filter", "position")


def make(name: str) -> Any:
    """Makes what `keras_varinit.initialize` takes.

    Args:
        name: As `SYNTAX` says.

    Raises:
        UserError: There is no such initializer, or its parts are wrong.
    """
    if name == "kaiming_backward":
        return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    identifier, *parts = name.split(":")
    initializers.check([identifier])
    if not parts:
        return identifier
    cls = type(keras.initializers.get(identifier))
    if not identifier.startswith("enhanced_"):
        raise UserError(f"--initializers {name}: {identifier} takes nothing after a colon.")
    if parts[0] not in GRANULARITIES or len(parts) > 2:
        raise UserError(
            f"--initializers {name}: write {identifier}:filter or {identifier}:position, and if "
            "need be a concentration behind it, as in :filter:2."
        )
    try:
        arguments = {"concentration": float(parts[1])} if len(parts) == 2 else {}
        return cls(granularity=parts[0], **arguments)
    except ValueError as error:
        raise UserError(
            f"--initializers {name}: {parts[1]} is no concentration: {error}"
        ) from error


def check(names: Sequence[str]) -> list[str]:
    """Checks names, and drops those that stand there twice.

    Raises:
        UserError: As `make`.
    """
    for name in names:
        make(name)
    return list(dict.fromkeys(names))


def base(name: str) -> str:
    """The classical initializer that a name is held against: itself where it is one.

    He's normal is the base of whatever looks at the model around a kernel.
    """
    identifier = name.split(":")[0]
    if identifier.startswith("enhanced_"):
        return identifier.removeprefix("enhanced_")
    if identifier in (*initializers.VARINIT_IDS, "kaiming_backward"):
        return "he_normal"
    return name
