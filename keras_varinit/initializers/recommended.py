"""`Recommended`: one initializer for every weight, by what the weight is for.

The first rule that applies decides. Each has one line of evidence; what the evidence does not
support is not in the table, and then the recommendation is what Keras draws by default.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import (
    ContextualInitializer,
    Family,
    register,
)
from keras_varinit.initializers.draws import Draw, constant, independent
from keras_varinit.initializers.laws import describe, reseeded, resolve_base
from keras_varinit.initializers.orthogonal import draw_orthogonal
from keras_varinit.keras_private import layer_being_built
from keras_varinit.typing import Config

_RECTIFIERS = ("relu", "leaky_relu", "relu6", "elu", "gelu", "silu", "swish", "mish")


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """One line of the table.

    Args:
        kind: What it is for: `"kernel"`, `"bias"` or `"scale"`.
        applies: Whether it applies to a weight with this context.
        choice: Name and arguments of the initializer. `initializer` among these is the base of a
            wrapper for layers that do not name one of their own.
        reason: Why, and where to find the evidence.
    """

    kind: str
    applies: Callable[[LayerContext], bool]
    choice: tuple[str, Config]
    reason: str

    def initializer(
        self, seed: int | None, own: keras.initializers.Initializer | None = None
    ) -> ContextualInitializer:
        """The initializer, with a seed; `own` is what the layer would draw with."""
        name, arguments = self.choice
        if "initializer" in arguments and _is_base(own):
            arguments = {**arguments, "initializer": keras.initializers.serialize(own)}
        config = {"class_name": name, "config": {**arguments, "seed": seed}}
        initializer: ContextualInitializer = keras.initializers.get(config)
        return initializer


def _is_base(initializer: keras.initializers.Initializer | None) -> bool:
    """Whether a wrapper can scale an initializer's draws."""
    if initializer is None:
        return False
    try:
        resolve_base("Recommended", initializer, None)
    except (TypeError, ValueError):
        return False
    return True


def _is_rectified(context: LayerContext) -> bool:
    is_kernel = context.role == "kernel" and context.normalized is None
    return is_kernel and context.activation in _RECTIFIERS


def _is_rectified_convolution(context: LayerContext) -> bool:
    return bool(context.spatial_axes) and _is_rectified(context) and not _maps_to_a_map(context)


def _maps_to_a_map(context: LayerContext) -> bool:
    """Restoration and segmentation do better from small outputs, unless the signal dies."""
    return context.dense_prediction and context.total_depth < 16


def _ends_a_branch(context: LayerContext) -> bool:
    is_end = context.branch_end and context.role in ("kernel", "attention_output")
    # A scale that trains with the kernel would get no gradient while the kernel is zero.
    return is_end and context.normalized is None and not context.layer_scale


def _is_dense(context: LayerContext) -> bool:
    return not context.spatial_axes and context.branches == 0 and context.gates is None


def _is_in_a_deep_rectifier_network(context: LayerContext) -> bool:
    return _is_dense(context) and _is_rectified(context) and context.total_depth > 4


def _can_be_orthogonal(context: LayerContext) -> bool:
    """In networks like those that were measured; the decomposition costs the cube of the width."""
    return context.plain_dense and max(context.kernel_shape) <= 1024


def _is_in_a_deep_rectifier_network_alone(context: LayerContext) -> bool:
    return _can_be_orthogonal(context) and _is_in_a_deep_rectifier_network(context)


def _is_in_a_deep_tanh_network(context: LayerContext) -> bool:
    is_kernel = context.role == "kernel" and context.activation == "tanh"
    return is_kernel and _can_be_orthogonal(context) and context.total_depth >= 16


def _remembers_long(context: LayerContext) -> bool:
    return context.gates in (3, 4) and context.steps is not None and context.steps >= 50


RULES = (
    Rule(
        "kernel",
        _ends_a_branch,
        ("ResidualScaled", {"initializer": "glorot_uniform", "rule": "zero"}),
        "end of a residual branch: zeros (De & Smith 2020; RESULTS.md, language-model, resnet)",
    ),
    Rule(
        "kernel",
        _is_rectified_convolution,
        ("SignalPreserving", {}),
        "rectified convolution, no normalization: unit signal (RESULTS.md, plain-cnn)",
    ),
    Rule(
        "kernel",
        _is_in_a_deep_rectifier_network_alone,
        ("SignalPreserving", {"distribution": "orthogonal"}),
        "deep dense network with rectifiers: unit signal, orthogonal (RESULTS.md, deep-mlp-relu)",
    ),
    Rule(
        "kernel",
        _is_in_a_deep_rectifier_network,
        ("SignalPreserving", {}),
        "dense, rectified, in a deep network, no normalization: unit signal (RESULTS.md, "
        "plain-cnn)",
    ),
    Rule(
        "kernel",
        _is_in_a_deep_tanh_network,
        ("Isometric", {}),
        "deep dense network with tanh: isometry (Saxe et al. 2014; RESULTS.md, deep-mlp-tanh)",
    ),
    Rule(
        "bias",
        _remembers_long,
        ("ChronoBias", {}),
        "gates over 50 steps or more: chrono (Tallec & Ollivier 2018; RESULTS.md, lstm-adding)",
    ),
)

OWN = "no rule is known to be better: the layer's own initializer"

# What Keras draws by default, by role.
_DEFAULTS: dict[str, tuple[str, Config]] = {
    "recurrent": ("Orthogonal", {}),
    "embedding": ("RandomUniform", {}),
    "position": ("RandomUniform", {}),
    "bias": ("Zeros", {}),
    "scale": ("Ones", {}),
}

_OF_ATTRIBUTES = {
    "recurrent_initializer": "recurrent",
    "embeddings_initializer": "embedding",
    "bias_initializer": "bias",
    "beta_initializer": "bias",
    "gamma_initializer": "scale",
}


def rule_for(context: LayerContext) -> Rule | None:
    """The first rule that applies to a weight; None where Keras's default is recommended."""
    rules = (rule for rule in RULES if rule.kind == context.kind and rule.applies(context))
    return next(rules, None)


@register("recommended")
class Recommended(ContextualInitializer):
    """Draws each weight by what it is for.

    Picks one of the library's initializers by the weight's context: for kernels, biases and
    normalization scales. `recommend(model)` shows the choice for each weight and the reason. Where
    no rule applies, it draws what Keras does by default: `glorot_uniform` for kernels, orthogonal
    ones for recurrent kernels, U(±0.05) for embeddings, zeros for biases, ones for scales. In
    `initialize(model)`, the layer's own initializer takes the place of Keras's default.

    Args:
        seed: Integer or None.
        context: Set by `inject`. Without it Keras's default for that kind of weight, which is
            known while a layer is being built; otherwise `glorot_uniform` for two or more
            dimensions and zeros for one.

    Shape: any.

    Units: `stddev` is the standard deviation of the choice.

    Raises:
        TypeError: an argument has the wrong type.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, activation="relu")]
        >>> model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> report = kv.initialize(model, seed=0)
        >>> [row.initializer for row in report if row.path.endswith("kernel")]
        ['SignalPreserving', 'GlorotUniform']

    Reference: the sources of the rules, which `RULES` in this file names.
    """

    kinds = ("kernel", "bias", "scale")

    def __init__(
        self,
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(seed=seed, context=context)
        self._roles_drawn: dict[tuple[int, ...], str] = {}

    def chosen(
        self, context: LayerContext, own: keras.initializers.Initializer | None = None
    ) -> ContextualInitializer | None:
        """The initializer that a rule chooses for a weight; None where no rule applies.

        `own` is what the layer would draw with.
        """
        rule = rule_for(context)
        return None if rule is None else rule.initializer(self.seed, own)

    @property
    def refused_as_base(self) -> str:
        """Why no wrapper may scale the draws of this initializer."""
        return "it draws some weights with wrappers itself"

    @property
    def family(self) -> Family:
        """Distribution of an entry: the choice's."""
        choice = self._choice()
        return "uniform" if choice is None else choice.family

    @property
    def is_independent(self) -> bool:
        """Whether the choice's kernel is independent of all others."""
        choice = self._choice()
        return choice is None or choice.is_independent

    @property
    def shares_group(self) -> bool:
        """Whether the choice draws kernels of one `group` together."""
        choice = self._choice()
        return choice is not None and choice.shares_group

    @property
    def sets_forget_gate(self) -> bool:
        """Whether the choice draws the forget gate's bias."""
        choice = self._choice()
        return choice is not None and choice.sets_forget_gate

    @property
    def needs_signal(self) -> bool:
        """Whether the choice needs the signal engine's gain."""
        choice = self._choice()
        return choice is not None and choice.needs_signal

    def share(self, context: LayerContext) -> float | None:
        """The share that the choice asks for."""
        choice = self.chosen(context)
        return None if choice is None else choice.share(context)

    def reads_centre_only(self, shape: Sequence[int]) -> bool:
        """Whether the choice's kernel is zero at every tap but the central one."""
        choice = self._choice()
        return choice is not None and choice.reads_centre_only(shape)

    def stddev(self, shape: Sequence[int]) -> float | None:
        """Returns the standard deviation of the choice."""
        choice = self._choice()
        if choice is not None:
            return choice.stddev(shape)
        role = self._role(tuple(shape))
        if role in ("bias", "scale"):
            return 0.0
        return describe(_default(role), shape, self._context_for(shape)).stddev

    def neutral(self) -> keras.initializers.Initializer:
        """Returns Keras's default for kernels."""
        return keras.initializers.GlorotUniform(seed=self.seed)

    def in_keras(self) -> keras.initializers.Initializer | None:
        """Returns Keras's initializer for the present context."""
        context, choice = self._context, self._choice()
        if choice is not None:
            return choice.in_keras()
        if context is None:
            return None
        default = _default(context.role)
        return reseeded(default, self.seed) if "seed" in default.get_config() else default

    def _choice(self) -> ContextualInitializer | None:
        """The choice for the present context, drawing from this initializer's streams."""
        if self._context is None:
            return None
        choice = self.chosen(self._context)
        if choice is None:
            return None
        seeded: Any = reseeded(choice, self._entropy)
        return seeded.with_context(self._context)  # type: ignore[no-any-return]

    def _role(self, shape: tuple[int, ...]) -> str:
        """The role by the context, by the attribute of the layer being built, or by the rank."""
        context = self._context_for(shape)
        if context is not None:
            return context.role
        if shape not in self._roles_drawn:
            by_rank = "kernel" if len(shape) > 1 else "bias"
            attributes = [_OF_ATTRIBUTES.get(name) for name in self._attributes()]
            fitting = [a for a in attributes if (a in ("bias", "scale")) == (by_rank == "bias")]
            self._roles_drawn[shape] = next(filter(None, fitting), by_rank)
        return self._roles_drawn[shape]

    def _attributes(self) -> list[str]:
        """The attributes in which the layer that is creating variables holds this initializer."""
        layer = layer_being_built()
        attributes = {} if layer is None else dict(vars(layer))
        return [name for name, value in attributes.items() if value is self]

    def _sample(self, shape: tuple[int, ...]) -> Draw:
        choice = self._choice()
        if choice is not None and self._context_for(shape) is not None:
            return choice.draw(shape)
        role = self._role(shape)
        if role in ("bias", "scale"):
            return constant(shape, float(role == "scale"))
        stddev = self.stddev(shape) or 0.0
        if role == "recurrent":
            return draw_orthogonal(self._stream_key(), shape, stddev, self._context_for(shape))
        return independent(self._stream_key(), shape, "uniform", stddev)


def _default(role: str) -> keras.initializers.Initializer:
    """What Keras draws by default for weights of a role."""
    name, config = _DEFAULTS.get(role, ("GlorotUniform", {}))
    return keras.initializers.get({"class_name": name, "config": config})
