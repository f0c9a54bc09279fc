"""Checks initializer names before anything is trained."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import keras

from common.errors import UserError, require

#: The ids of keras_varinit.
VARINIT_IDS = (
    "enhanced_he_normal",
    "enhanced_he_uniform",
    "enhanced_glorot_normal",
    "enhanced_glorot_uniform",
    "enhanced_lecun_normal",
    "enhanced_lecun_uniform",
    "asv_forward",
    "asv_backward",
    "depth_scaled",
    "signal_preserving",
    "isometric",
    "residual_scaled",
    "partial_identity",
    "mimetic",
    "recommended",
)

#: Of the ids of Keras, those that can break the symmetry of a convolution's channels.
KERAS_IDS = (
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "orthogonal",
    "random_normal",
    "random_uniform",
    "truncated_normal",
    "variance_scaling",
)


def check(names: Sequence[str], option: str = "--initializers") -> None:
    """Checks that each name is an initializer for convolution and dense kernels.

    Args:
        names: Ids as a layer's `kernel_initializer` takes them.
        option: The one of the command line that names them.

    Raises:
        UserError: When Keras does not know one, or it cannot draw such kernels.
    """
    for name in names:
        try:
            initializer = keras.initializers.get(name)
        except ValueError as error:
            raise UserError(f"{option} {_unknown(name)}") from error
        for shape in ((3, 3, 4, 8), (8, 4)):
            try:
                initializer(shape)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{option} {name}: cannot draw a kernel of shape {shape}: {error}"
                ) from error


def needs_context(name: str) -> bool:
    """Returns whether an initializer is one of ours, which look at the model around a layer.

    Args:
        name: An initializer's id.
    """
    return type(keras.initializers.get(name)).__module__.startswith("keras_varinit")


def register() -> None:
    """Makes the ids of keras_varinit known to Keras.

    Raises:
        UserError: When keras_varinit is not installed.
    """
    require("keras_varinit", "keras-varinit", "for its initializers")


def _unknown(name: str) -> str:
    known = (*VARINIT_IDS, *KERAS_IDS)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"{name}: no such initializer. Did you mean {' or '.join(close)}?"
    return f"{name}: no such initializer. There are: {', '.join(known)}."
