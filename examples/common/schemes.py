"""Initializers by name, with the arguments of those that a study varies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

import keras_varinit as kv
from common import initializers
from common.errors import UserError

#: How a name is written.
SYNTAX = (
    "an id of keras_varinit or Keras, kaiming_backward (2 / fan_out), keras_before_3.15 "
    "(glorot_uniform, with the scale that attention had), for the enhanced ones "
    "ID:GRANULARITY[:CONCENTRATION], as in enhanced_he_normal:position:2, "
    "residual_scaled:RULE[:BASE], as in residual_scaled:zero, depth_scaled:SCHEDULE:VARIANCE, as "
    "in depth_scaled:constant:22, signal_preserving:1/L, or "
    "ID:orthogonal for asv_forward, asv_backward and signal_preserving"
)
GRANULARITIES = ("filter", "position")
#: Those with orthogonal draws.
ORTHOGONAL = ("asv_forward", "asv_backward", "signal_preserving")
RULES = ("depth", "fixup", "zero")


def before_3_15(context: kv.LayerContext) -> Any:
    """Glorot's uniform initializer with the fans that Keras counted before 3.15.

    Kernels of attention have three axes, of which the first was taken for the receptive field of
    a convolution: (768, 12, 64) had fans of 768·12 and 768·64, where there are 768 and 768.

    Args:
        context: Of a kernel.
    """
    if context.role not in ("query", "key", "value", "attention_output"):
        return "glorot_uniform"
    *receptive, fan_in, fan_out = context.kernel_shape
    limit = math.sqrt(6 / (math.prod(receptive) * (fan_in + fan_out)))
    return keras.initializers.RandomUniform(-limit, limit)


def make(name: str) -> Any:
    """Makes what `keras_varinit.initialize` takes.

    Args:
        name: As `SYNTAX` says.

    Raises:
        UserError: There is no such initializer, or its parts are wrong.
    """
    if name == "kaiming_backward":
        return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    if name == "keras_before_3.15":
        return before_3_15
    if name == "signal_preserving:1/L":
        return kv.SignalPreserving(branch_share="1/L")
    identifier, *parts = name.split(":")
    initializers.check([identifier])
    if not parts:
        return identifier
    if parts == ["orthogonal"] and identifier in ORTHOGONAL:
        return type(keras.initializers.get(identifier))(distribution="orthogonal")
    if identifier == "residual_scaled":
        return _residual_scaled(name, *parts)
    if identifier == "depth_scaled":
        return _depth_scaled(name, *parts)
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


def _residual_scaled(name: str, rule: str, *base: str) -> kv.ResidualScaled:
    if rule not in RULES or len(base) > 1:
        raise UserError(
            f"--initializers {name}: write residual_scaled:RULE or residual_scaled:RULE:BASE, with "
            f"{', '.join(RULES)} for RULE."
        )
    initializers.check(base)
    return kv.ResidualScaled(*base, rule=rule)


def _depth_scaled(name: str, schedule: str, *variance: str) -> kv.DepthScaled:
    try:
        (network_variance,) = map(float, variance)
        return kv.DepthScaled(schedule=schedule, network_variance=network_variance)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(
            f"--initializers {name}: write depth_scaled:SCHEDULE:VARIANCE, with increasing, "
            "constant or decreasing for SCHEDULE and a number for VARIANCE."
        ) from error


def check(names: Sequence[str]) -> list[str]:
    """Checks names, and drops duplicates.

    Raises:
        UserError: As `make`.
    """
    for name in names:
        make(name)
    return list(dict.fromkeys(names))


def base(name: str) -> str:
    """The classical initializer that a name is held against: itself where it is one.

    He's normal is the base of whatever looks at the model around a kernel, except for those that
    scale or replace Keras's default.
    """
    identifier, *parts = name.split(":")
    if identifier.startswith("enhanced_"):
        return identifier.removeprefix("enhanced_")
    if identifier == "residual_scaled" and len(parts) == 2:
        return parts[1]
    if identifier in ("residual_scaled", "mimetic", "keras_before_3.15"):
        return "glorot_uniform"
    if identifier in (*initializers.VARINIT_IDS, "kaiming_backward"):
        return "he_normal"
    return name
