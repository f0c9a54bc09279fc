"""Mimetic initialization of self-attention (Trockman and Kolter, ICML 2023, arXiv 2305.09828).

Trained vision transformers have W_Q·W_Kᵀ ≈ a multiple of the identity plus noise, and W_V·W_O the
same with a minus sign. With d channels, Z a matrix of entries N(0, 1/d), and SVDs USVᵀ:

    for each head h of size k:  0.7·Z_h + 0.7·I = USVᵀ,  W_Q = (U√S)[:, :k],  W_K = (V√S)[:, :k]
    for all heads together:     0.4·Z - 0.4·I   = USVᵀ,  W_V = U√S,           W_O = √S·Vᵀ

so that W_Q·W_Kᵀ is the best approximation of rank k. Beyond the paper:

* Z_h is drawn from the stream "seed|group|qk|h", Z from "seed|group|vo": any kernel can be drawn
  alone.
* k > d: the rank is d, and W_Q·R, W_K·R have the same product for R (d, k) with orthonormal rows.
* H query heads share G key heads: W_K is that of the first query head of a group. The others have
  W_Q = (0.7·Z_h + 0.7·I)·W_K·(W_KᵀW_K)⁻¹, the least-squares solution.
* G value heads of size v have rank r = G·v. r < d: the leading r of U√S and √S·Vᵀ. r > d: U√S·R and
  Rᵀ√S·Vᵀ. The H/G heads of a group that share their values add up, so each gets G/H of the output
  kernel's block.

V and S are from the eigenvectors of MᵀM, and U√S = M·V/√S, at half the cost of an SVD.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_varinit.context import LayerContext
from keras_varinit.initializers.base import register
from keras_varinit.initializers.draws import Draw, as_array, independent
from keras_varinit.initializers.streams import Float32Array, stream_key
from keras_varinit.initializers.wrapping import Wrapper
from keras_varinit.maths.shifted_ginibre import mean_power_of_largest
from keras_varinit.typing import Config, FloatArray

_QUERY_KEY, _VALUE_OUTPUT = 0.7, 0.4

_ROLES = ("query", "key", "value", "attention_output")


@dataclasses.dataclass(frozen=True)
class _Attention:
    """Sizes of an attention: d channels, H query heads, G key and value heads, size of a head."""

    width: int
    heads: int
    kv_heads: int
    head_size: int

    @property
    def shared(self) -> int:
        """Number of query heads that share a key head."""
        return self.heads // self.kv_heads


@register("mimetic")
class Mimetic(Wrapper):
    """Draws the kernels of non-causal self-attention to resemble trained vision transformers.

    W_Q·W_Kᵀ ≈ 0.7·Z + 0.7·I for each head, W_V·W_O ≈ 0.4·Z - 0.4·I for all heads together, with
    entries of Z from N(0, 1/d), so that the four kernels are drawn together. `initializer` draws
    all others, also those of attention that is causal, reads keys and values from elsewhere, or
    changes the number of channels.

    Args:
        initializer: The base: a string id, config or initializer object, of Keras or of this
            library, that is zero-mean and takes a `seed`. Defaults to `"glorot_uniform"`.
        seed: Integer or None. The kernels of an attention are drawn from one seed: `inject` and
            `initialize` give them one if it is None. None takes the base's own seed if it has one.
        context: Set by `inject`. Without it the base initializer, bit for bit.

    Shape: channels and heads, `(d, heads, size)` or `(d, heads·size)`, reversed in the output
    kernel; the context's `filter_axes` tell the axes. Head h reads the keys of head h//(H/G).

    Units: `stddev` is the root of the mean square of an entry for d → ∞. With E s the mean of the
    largest min(k, d) singular values of Z + I (5/4 for all of them), it is
    √(0.7·min(k, d)·E s/(d·k)) for queries and keys, and √(0.4·min(r, d)·E s/(d·r)) for values and
    outputs, r = G·v; times G/H for outputs of grouped values. Query heads that follow the first of
    their group have 1.4·E(1/s) instead of 0.7·E s.

    Cost: for each key head the eigenvectors of a d×d matrix: about 0.1 s for d = 768 and 0.3 s for
    d = 1024 on one core, half as many where both kernels of a pair are drawn in a row.

    The signal engine assumes independent kernels, which these are not: its predictions are None
    from here to the next normalization.

    Raises:
        TypeError, ValueError: an argument has the wrong type; the base is not zero-mean or takes no
            seed.

    Example:
        >>> import keras, keras_varinit as kv
        >>> layer = keras.layers.MultiHeadAttention(4, 16, kernel_initializer="mimetic")

    Measured here (examples/RESULTS.md): no difference from Keras's default on a small vision
    transformer with trained positions (+0.007, 95 % interval -0.015 to 0.029, 8 seeds), nor, on one
    and on a language model, where both have their best learning rate (the panel).

    Reference: A. Trockman, J. Z. Kolter (2023), "Mimetic initialization of self-attention layers",
    arXiv 2305.09828. There: ViT-Tiny on CIFAR-10 and ImageNet, with sinusoidal positions.
    """

    def __init__(
        self,
        initializer: str | Config | keras.initializers.Initializer = "glorot_uniform",
        seed: int | None = None,
        context: LayerContext | Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(initializer, seed, context)

    @property
    def refused_as_base(self) -> str:
        """Why no wrapper may scale the draws of this initializer."""
        return "it draws two kernels together, whose product would be another"

    @property
    def is_independent(self) -> bool:
        """Whether the base draws the kernel."""
        return self._attention(self._context) is None

    @property
    def shares_group(self) -> bool:
        """Whether the kernel is drawn with the others of its attention."""
        return not self.is_independent

    def stddev(self, shape: Sequence[int]) -> float | None:
        """Returns the root mean square of an entry in the limit of many channels."""
        context = self._context_for(shape)
        sizes = self._attention(context)
        if context is None or sizes is None:
            return self._law(shape).stddev
        d, heads = sizes.width, sizes.kv_heads
        if context.role in ("query", "key"):
            columns, scale = sizes.head_size, _QUERY_KEY
        else:
            columns, scale = heads * sizes.head_size, _VALUE_OUTPUT
        rank = min(columns, d)
        square = scale * mean_power_of_largest(rank / d)
        if context.role == "query" and sizes.shared > 1:
            others = 2 * scale * mean_power_of_largest(rank / d, -1.0)
            square = (square + (sizes.shared - 1) * others) / sizes.shared
        if context.role == "attention_output":
            square /= sizes.shared**2
        return math.sqrt(square * rank / (d * columns))

    def get_config(self) -> Config:
        """Returns the configuration, JSON primitives only."""
        return {"initializer": self._base_config(), **super().get_config()}

    def _sample(self, shape: tuple[int, ...]) -> Draw | Float32Array:
        context = self._context_for(shape)
        sizes = self._attention(context)
        if context is None or sizes is None:
            return self._base_draw(shape)
        matrix = _matrix(f"{self._entropy}|{context.group}", context.role, sizes)
        inputs, outputs = _axes(context)
        values = matrix.reshape([shape[axis] for axis in (*inputs, *outputs)])
        return np.ascontiguousarray(values.transpose(np.argsort((*inputs, *outputs))))

    @staticmethod
    def _attention(context: LayerContext | None) -> _Attention | None:
        """The sizes of the attention that a context is of; None if the base draws its kernel."""
        if context is None or context.role not in _ROLES or context.group is None:
            return None
        heads, size = context.heads, context.head_size
        if context.self_attention is not True or context.causal is not False:
            return None
        kv_heads = heads if context.kv_heads is None else context.kv_heads
        if heads is None or size is None or kv_heads is None or heads % kv_heads:
            return None
        inputs, outputs = (tuple(context.kernel_shape[n] for n in axes) for axes in _axes(context))
        if context.role == "attention_output":
            inputs, outputs = outputs, inputs
        count = kv_heads if context.role in ("key", "value") else heads
        if outputs not in ((count, size), (count * size,)):
            return None
        return _Attention(math.prod(inputs), heads, kv_heads, size)


def _axes(context: LayerContext) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The kernel's axes that index inputs, and those that index outputs."""
    outputs = context.filter_axes
    axes = range(len(context.kernel_shape))
    return tuple(axis for axis in axes if axis not in outputs), outputs


_partner: dict[tuple[str, str, _Attention], Float32Array] = {}


def _matrix(stream: str, role: str, sizes: _Attention) -> Float32Array:
    """One of the four kernels, as a matrix (inputs, outputs).

    Two kernels are drawn at once; the second waits until it is asked for, or another pair is drawn.
    """
    waiting = _partner.pop((stream, role, sizes), None)
    if waiting is not None:
        return waiting
    if role in ("query", "key"):
        pair = dict(zip(("query", "key"), _query_and_key(stream, sizes), strict=True))
    else:
        pair = dict(
            zip(("value", "attention_output"), _value_and_output(stream, sizes), strict=True)
        )
    drawn = pair.pop(role)
    _partner.clear()
    _partner.update({(stream, other, sizes): matrix for other, matrix in pair.items()})
    return drawn


def _query_and_key(stream: str, sizes: _Attention) -> tuple[Float32Array, Float32Array]:
    d, k = sizes.width, sizes.head_size
    query = np.empty((d, sizes.heads, k), np.float32)
    key = np.empty((d, sizes.kv_heads, k), np.float32)
    for head in range(sizes.heads):
        matrix = _target(f"{stream}|qk|{head}", d, _QUERY_KEY, _QUERY_KEY)
        group, place = divmod(head, sizes.shared)
        if place == 0:
            right, values = _right_factor(matrix, min(k, d))
            rotation = f"{stream}|qk|{head}|rotation"
            key[:, group] = _rotated(right * np.sqrt(values), k, rotation)
        query[:, head] = _rotated(matrix @ (right / np.sqrt(values)), k, rotation)
    return query.reshape(d, -1), key.reshape(d, -1)


def _value_and_output(stream: str, sizes: _Attention) -> tuple[Float32Array, Float32Array]:
    d, rank = sizes.width, sizes.kv_heads * sizes.head_size
    matrix = _target(f"{stream}|vo", d, _VALUE_OUTPUT, -_VALUE_OUTPUT)
    right, values = _right_factor(matrix, min(rank, d))
    rotation = f"{stream}|vo|rotation"
    value = _rotated(matrix @ (right / np.sqrt(values)), rank, rotation)
    output = _rotated(right * np.sqrt(values), rank, rotation).T.reshape(sizes.kv_heads, -1)
    output = np.repeat(output / sizes.shared, sizes.shared, axis=0).reshape(-1, d)
    return value.astype(np.float32), output.astype(np.float32)


def _target(stream: str, d: int, noise: float, identity: float) -> FloatArray:
    """noise·Z + identity·I with entries of Z from N(0, 1/d)."""
    key = stream_key(0, stream)
    normal = as_array(independent(key, (d, d), "normal", noise / math.sqrt(d)))
    return normal.astype(np.float64) + identity * np.eye(d)


def _right_factor(matrix: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """The right singular vectors of the `rank` largest singular values, and these values."""
    vectors = np.linalg.eigh(matrix.T @ matrix)[1][:, ::-1][:, :rank]
    # The sign of a singular vector is free: the same choice on every machine.
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    vectors = vectors * np.sign(largest)
    return vectors, np.maximum(np.linalg.norm(matrix @ vectors, axis=0), np.finfo(np.float32).tiny)


def _rotated(factor: FloatArray, columns: int, stream: str) -> FloatArray:
    """A factor of more columns than rows times a random matrix with orthonormal rows.

    Only a square factor has too few columns. The product of two such factors stays the same, and no
    column is left without a gradient.
    """
    d = factor.shape[1]
    if d == columns:
        return factor
    key = stream_key(0, stream)
    normal = as_array(independent(key, (columns, d), "normal")).astype(np.float64)
    rotated: FloatArray = factor @ np.linalg.qr(normal)[0].T
    return rotated
