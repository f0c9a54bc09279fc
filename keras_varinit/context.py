"""What an initializer knows about the model around its kernel: immutable plain values."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from keras_varinit.arguments import Arguments, is_integer, is_real
from keras_varinit.typing import Config

_POOLINGS = (None, "max", "average")

_Check = tuple[Callable[[Any], bool], str, type[Exception]]

ROLES = (
    "kernel",
    "query",
    "key",
    "value",
    "attention_output",
    "recurrent",
    "embedding",
    "position",
    "head",
    "bias",
    "scale",
)


def _checks() -> dict[str, tuple[_Check, ...]]:
    """For each field: predicates that its value must satisfy, with what they ask for."""
    string: _Check = (lambda v: isinstance(v, str), "a string", TypeError)
    name: _Check = (lambda v: isinstance(v, str | None), "a string or None", TypeError)
    integer: _Check = (is_integer, "an integer", TypeError)
    counted: _Check = (lambda v: v >= 1, "at least 1", ValueError)
    flag: _Check = (lambda v: isinstance(v, bool), "a boolean", TypeError)
    known_flag: _Check = (lambda v: isinstance(v, bool | None), "a boolean or None", TypeError)
    number: _Check = (is_real, "a number", TypeError)
    size: _Check = (lambda v: v is None or is_integer(v), "an integer or None", TypeError)
    known_size: _Check = (lambda v: v is None or v >= 1, "at least 1 or None", ValueError)
    integers: _Check = (
        lambda v: isinstance(v, list | tuple) and all(map(is_integer, v)),
        "a sequence of integers",
        TypeError,
    )
    sizes = ("connections", "input_size", "output_size", "pool_size", "heads", "kv_heads")
    checks: dict[str, tuple[_Check, ...]] = {
        **dict.fromkeys(("path", "layer", "stream"), (string,)),
        **dict.fromkeys(("kernel_shape", "filter_axes", "spatial_axes"), (integers,)),
        **dict.fromkeys(("depth", "total_depth", "stride"), (integer, counted)),
        **dict.fromkeys((*sizes, "head_size", "gates", "steps"), (size, known_size)),
        **dict.fromkeys(("activation", "group", "normalized"), (name,)),
        **dict.fromkeys(("causal", "self_attention"), (known_flag,)),
        **dict.fromkeys(("branch_end", "layer_scale", "dense_prediction", "plain_dense"), (flag,)),
    }
    positive: _Check = (
        lambda v: math.isfinite(v) and v > 0,
        "finite and positive",
        ValueError,
    )
    gain: _Check = (lambda v: math.isfinite(v) and v >= 0, "finite and positive", ValueError)
    optional: _Check = (lambda v: v is None or is_real(v), "a number or None", TypeError)
    known: _Check = (
        lambda v: v is None or (math.isfinite(v) and v > 0),
        "finite and positive, or None",
        ValueError,
    )
    at_least_0: _Check = (lambda v: v >= 0, "at least 0", ValueError)
    pooling: _Check = (lambda v: v in _POOLINGS, "one of None, 'max', 'average'", ValueError)
    role: _Check = (lambda v: v in ROLES, f"one of {', '.join(ROLES)}", ValueError)
    return checks | {
        **dict.fromkeys(("fan_in", "fan_out"), (number, positive)),
        **dict.fromkeys(("forward_gain", "backward_gain"), (number, gain)),
        **dict.fromkeys(("signal_gain", "branch_gain"), (optional, known)),
        **dict.fromkeys(("branches", "branch_size"), (integer, at_least_0)),
        "pooling": (pooling,),
        "role": (role,),
    }


_CHECKS = _checks()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerContext:
    """The surroundings of one kernel, as `analyze` derives them from a model.

    A weight layer, the activation that follows it and the pooling after that form a *stage*:
    `u = W·z_{l-1} + b`, `v = f(u)`, `z_l = pool(v)`. The context describes stage `l` of one kernel
    and the gain of the stage that feeds it. It is part of the initializer's configuration, so a
    saved model restores the same distribution.

    Args:
        path: Path of the kernel's variable, the key in reports (`"conv2d/kernel"`).
        layer: Name of the layer that owns the kernel.
        stream: Name of the kernel's random stream: the path, with the counters that Keras adds to
            automatic names (they depend on what the process built before) replaced by the
            occurrence within the model. It is unique in the model and equal in every process.
        kernel_shape: Shape of the kernel.
        depth: Number of weight layers on the longest path from an input to this layer, included.
        total_depth: The greatest `depth` in the model.
        fan_in: Number of inputs summed into one output far from any boundary.
        fan_out: Number of outputs that one input feeds, at stride 1 and far from any boundary.
        stride: Product of a convolution's strides; 1 for all other layers, transposed convolutions
            included.
        connections: Exact number ε of (input, output) pairs joined by a weight, without zero
            padding. None if a spatial size is unknown.
        input_size: Number M of input entries; None if a spatial size is unknown.
        output_size: Number M' of output entries; None if a spatial size is unknown.
        filter_axes: Kernel axes that index filters.
        spatial_axes: Kernel axes that index positions of the window.
        activation: Name of the stage's activation, or None.
        pooling: The stage's pooling: `"max"`, `"average"` or None.
        pool_size: Number T of entries in a pooling window; 1 without pooling, None if unknown
            (global pooling of a map of unknown size).
        forward_gain: τ_{l-1}, the second moment of this layer's input if the stage that feeds it
            has unit-variance pre-activations; 1 at the model's input.
        backward_gain: γ_l, the fraction of gradient variance that this stage passes back from one
            of its outputs to one pre-activation.
        signal_gain: E u² of the kernel's output u for a kernel of variance 1, from the signal
            engine, given the variances of the kernels that precede it. None unless the initializer
            uses it.
        role: What the weight is for: `"query"`, `"key"`, `"value"` or `"attention_output"` of an
            attention; `"recurrent"`, a kernel that reads its layer's state; `"embedding"` or
            `"position"`, a table of vectors; `"head"`, whose output is the model's; `"bias"` or
            `"scale"` (γ of a normalization), whose other fields, `path`, `layer` and `stream`
            apart, are those of its kernel; `"kernel"`, any other.
        heads: Number of query heads of the attention; None outside attention.
        kv_heads: Number of heads of keys and values, fewer than `heads` where queries are grouped.
        head_size: Size of a head of this kernel: of a query or key, or of a value.
        causal: Whether no query of the attention sees a later key; None outside attention.
        self_attention: Whether queries, keys and values are read from one signal; None outside
            attention.
        group: Name of the random stream that the kernels of one attention share, or None.
        branches: Number L of residual additions on the longest path of the stream that this
            kernel's branch adds to; outside of branches, the greatest L in the model; 0 without
            residual additions.
        branch_size: Number m of kernels in this kernel's residual branch; 0 outside branches.
        branch_end: Whether the kernel ends a residual branch: its output reaches the addition
            through no other kernel.
        layer_scale: Whether a tensor scales what the branch adds, after the kernel that ends it
            (LayerScale, ReZero). It may train together with the kernel.
        normalized: Class name of the normalization that directly follows, or None.
        gates: Number of blocks in the kernels of a recurrent layer: 4 for LSTM (input, forget,
            cell, output), 3 for GRU (update, reset, candidate), 1 for a simple one; None outside.
        steps: Number of steps that the recurrent layer takes; None if unknown, or outside.
        dense_prediction: Whether a head of the model outputs values for each position, as in
            segmentation, restoration of images and language models.
        plain_dense: Whether the model consists of dense layers alone: no kernel with a window, no
            recurrence, attention, embedding, normalization or residual branch.
        branch_gain: What the residual branch adds, relative to its stream, for a branch end of
            variance 1 (for a γ of 1): E F²/E s², from the signal engine. None unless the
            initializer uses it.

    Units: gains are ratios of second moments (variances), not of standard deviations.

    Raises:
        TypeError, ValueError: a field has the wrong type or is out of range.
    """

    path: str
    layer: str
    stream: str
    kernel_shape: tuple[int, ...]
    depth: int
    total_depth: int
    fan_in: float
    fan_out: float
    filter_axes: tuple[int, ...]
    spatial_axes: tuple[int, ...] = ()
    stride: int = 1
    connections: int | None = None
    input_size: int | None = None
    output_size: int | None = None
    activation: str | None = None
    pooling: str | None = None
    pool_size: int | None = 1
    forward_gain: float = 1.0
    backward_gain: float = 1.0
    signal_gain: float | None = None
    role: str = "kernel"
    heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    causal: bool | None = None
    self_attention: bool | None = None
    group: str | None = None
    branches: int = 0
    branch_size: int = 0
    branch_end: bool = False
    layer_scale: bool = False
    normalized: str | None = None
    gates: int | None = None
    steps: int | None = None
    dense_prediction: bool = False
    plain_dense: bool = False
    branch_gain: float | None = None

    def __post_init__(self) -> None:
        self._check(_CHECKS)
        for name in ("kernel_shape", "filter_axes", "spatial_axes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        rank = len(self.kernel_shape)
        for name in ("filter_axes", "spatial_axes"):
            in_range = all(0 <= axis < rank for axis in getattr(self, name))
            self._require(in_range, name, f"axes of a rank-{rank} kernel")
        self._require(self.depth <= self.total_depth, "depth", "at most `total_depth`")

    def _check(self, names: Iterable[str]) -> None:
        for name in names:
            value = getattr(self, name)
            for holds, wanted, error in _CHECKS[name]:
                if not holds(value):
                    raise Arguments("LayerContext").error(name, value, wanted, error)

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        Arguments("LayerContext").require(holds, name, getattr(self, name), wanted, ValueError)

    def with_role(self, **fields: Any) -> Self:
        """A copy with other names or another role; only the fields passed are checked."""
        twin = copy.copy(self)
        for name, value in fields.items():
            object.__setattr__(twin, name, value)
        twin._check(fields)  # noqa: SLF001 - an object of this class, not yet handed out
        return twin

    @property
    def kind(self) -> str:
        """`"bias"` or `"scale"` for the context of a vector beside a kernel, else `"kernel"`."""
        return self.role if self.role in ("bias", "scale") else "kernel"

    @property
    def mean_fan_in(self) -> float:
        """ε/M', the mean number of inputs per output; `fan_in` if a size is unknown."""
        if self.connections is None or self.output_size is None:
            return self.fan_in
        return self.connections / self.output_size

    @property
    def mean_fan_out(self) -> float:
        """ε/M, the mean number of outputs per input; `fan_out/stride` if a size is unknown."""
        if self.connections is None or self.input_size is None:
            return self.fan_out / self.stride
        return self.connections / self.input_size

    def draws_like(self, other: "LayerContext") -> bool:
        """Whether kernels for both contexts are the same draw: all fields but `path` agree.

        Gains may differ by rounding, as they do between machines.
        """
        for field in dataclasses.fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            if field.name == "path":
                continue
            if isinstance(a, float) and isinstance(b, float | int):
                if not math.isclose(a, b, rel_tol=1e-9):
                    return False
            elif a != b:
                return False
        return True

    def to_dict(self) -> Config:
        """Returns the fields as a dictionary of JSON primitives."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a context from the dictionary of `to_dict`.

        Raises:
            ValueError: a field is unknown to this version.
            TypeError: a field is missing.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"LayerContext: unknown fields {unknown}. Known fields: {sorted(known)}."
            )
        return cls(**values)
