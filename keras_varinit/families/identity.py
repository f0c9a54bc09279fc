"""Identities: Identity, InputLayer, Masking, ActivityRegularization, Cast, Copy and the like.

Also StopGradient and TimeDistributed. Nothing else counts as the identity.
"""

import dataclasses

import keras

from keras_varinit.maths.covariance import Moments
from keras_varinit.maths.windows import axes_of
from keras_varinit.signals.layouts import (
    channel_axes,
    fitting,
    on_axes,
    position_axes,
    signal_at,
    sizes_of,
    with_examples,
    without_axes,
)
from keras_varinit.signals.outcome import Gradients, Outcome, Visit, only_first, unknown
from keras_varinit.signals.registry import (
    constant_role,
    follows_channel_axes,
    layer_classes,
    signal_rule,
)
from keras_varinit.signals.roles import Source, Transparent

# `Masking` zeroes only steps whose entries all equal the mask value, 0 by default.
IDENTITY_LAYERS = layer_classes("ActivityRegularization", "Identity", "InputLayer", "Masking")

IDENTITY_OPERATIONS = ("Cast", "ConvertToTensor", "Copy", "SaturateCast")


@follows_channel_axes
@signal_rule(*IDENTITY_LAYERS, *IDENTITY_OPERATIONS)
def unchanged(visit: Visit) -> Outcome:
    """Returns the first input and its gradient unchanged."""
    count = len(visit.inputs)
    return Outcome(visit.inputs[:1], lambda gradients: only_first(gradients[0], count))


@follows_channel_axes
@signal_rule("StopGradient")
def _stop_gradient(visit: Visit) -> Outcome:
    """The same moments, detached from the signals that they were computed from."""
    output = visit.inputs[0].each(lambda m: dataclasses.replace(m.plain(), terms=()))
    return Outcome((output,), lambda _: [None])


@follows_channel_axes
@signal_rule(keras.layers.TimeDistributed)
def _time_distributed(visit: Visit) -> Outcome:
    """Turns steps into examples before the wrapped layer, and back into steps after it.

    After it, two steps are related like two examples.
    """
    source, shape, after = visit.inputs[0], visit.call.input_shapes[0], visit.output_shape
    channels = channel_axes(source, len(shape))
    positions = position_axes(source, len(shape))
    if visit.call.node.part == "enter":
        if 1 not in positions:
            return unknown(visit, "its steps are channels")

        def entered(moments: Moments) -> Moments:
            moments = without_axes(moments, [0], pooled=True)
            return on_axes(moments, axes_of(sizes_of(shape, positions[1:])))

        parts, target = source.each(entered).parts, [a - 1 for a in channels]
    else:
        target = [a + 1 for a in channels]
        axes = axes_of(sizes_of(after, [a for a in range(1, len(after)) if a not in target]))

        def left(moments: Moments) -> Moments:
            return with_examples(on_axes(moments, axes[1:]), axes[0])

        parts = source.each(left).parts
    output = signal_at(parts, target, len(after))

    def pullback(gradients: Gradients) -> Gradients:
        gradient = gradients[0]
        return (None if gradient is None else fitting(gradient, output, source),)

    return Outcome((output,), pullback)


constant_role(Source(), keras.layers.InputLayer)
constant_role(
    Transparent(),
    *layer_classes("ActivityRegularization", "Identity", "Masking", "TimeDistributed"),
    *("Cast", "ConvertToTensor", "Copy", "StopGradient"),
)
