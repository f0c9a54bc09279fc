"""Attention: the layers of Keras, with every argument that changes who sees whom."""

import keras
import numpy as np
from keras import ops

from tests.families.rule_cases.case import EXACT, Allowance, Case, L, dense, tokens

# Keys that a row favours are not of average size, and weights are drawn once for all rows.
WITHIN = Allowance(0.05, 0.10, "weights and the sizes of their keys count as uncorrelated")
NARROW = Allowance(0.09, 0.10, "queries, keys and values of one narrow layer resemble each other")
TOKENS, LONG = (10, 128), (24, 128)


def normal(fan_in=192):
    return keras.initializers.RandomNormal(0.0, fan_in**-0.5)


def multi_head(heads=4, size=16, **options):
    return L.MultiHeadAttention(heads, size, **{"kernel_initializer": normal(), **options})


def grouped(size=16, heads=6, groups=2, **options):
    options = {"kernel_initializer": normal(), **options}
    return L.GroupQueryAttention(size, heads, groups, **options)


def attended(make, *, after=dense, **arguments):
    """Self-attention, called by keywords."""

    def back(u):
        return after()(make()(query=u, value=u, key=u, **arguments))

    return back


def normalized(u):
    """Root mean square normalization by hand, whose divisor is one channel."""
    return u / ops.sqrt(ops.mean(ops.square(u), axis=-1, keepdims=True) + 1e-6)


def behind(make, function):
    def back(u):
        x = function(u)
        return dense()(make()(query=x, value=x))

    return back


def at_least(u):
    """No entry is below a bound, a single channel."""
    return ops.maximum(u, ops.mean(u, axis=-1, keepdims=True) - 1.0)


def patches(x):
    """Sixteen tokens of 108 entries each, from images of three channels."""
    return dense(64)(ops.reshape(ops.image.extract_patches(x, 6), (-1, 16, 108)))


def of_patches(u):
    x = L.LayerNormalization()(u)
    return dense()(multi_head(kernel_initializer=normal(64))(x, x))


def mask(shape):
    return np.random.default_rng(0).random(shape) < 0.6


def part(units=48):
    return dense(units, kernel_initializer=normal(192 * 7))


def plain(make, **arguments):
    """Attention without kernels of its own, which its queries, values and keys bring along."""

    def back(u):
        return dense()(make()([part()(u), part(64)(u), part()(u)], **arguments))

    return back


CASES = (
    Case(L.MultiHeadAttention, tokens, attended(multi_head), TOKENS, WITHIN),
    Case(
        L.MultiHeadAttention,
        tokens,
        attended(lambda: multi_head(kernel_initializer=normal(80))),
        TOKENS,
        WITHIN,
        "sharp",
    ),
    Case(
        L.MultiHeadAttention,
        lambda x: dense(96)(L.ReLU()(tokens(x))),
        attended(multi_head),
        TOKENS,
        WITHIN,
        "tokens alike",
    ),
    Case(
        (L.MultiHeadAttention, "TrueDivide"),
        lambda x: dense(192)(x),
        behind(multi_head, normalized),
        TOKENS,
        WITHIN,
        "behind a norm by hand",
    ),
    Case(
        (L.MultiHeadAttention, "ExtractPatches"),
        patches,
        of_patches,
        (24, 24, 3),
        WITHIN,
        "patches",
    ),
    Case(
        (L.MultiHeadAttention, "Maximum"),
        tokens,
        behind(multi_head, at_least),
        TOKENS,
        WITHIN,
        "behind a bound",
    ),
    Case(
        (L.MultiHeadAttention, "Where"),
        tokens,
        behind(multi_head, lambda u: ops.where(np.arange(10)[None, :, None] % 2 == 0, u, 2 * u)),
        TOKENS,
        WITHIN,
        "behind a choice of tokens",
        wrong="its output is 49 % larger: attention takes tokens to be of equal size on average",
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        attended(multi_head, use_causal_mask=True),
        LONG,
        WITHIN,
        "causal",
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        attended(multi_head, attention_mask=mask((1, 10, 10))),
        TOKENS,
        WITHIN,
        "constant mask",
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        attended(
            multi_head,
            attention_mask=mask((1, 10, 10)) | np.eye(10, dtype=bool),
            use_causal_mask=True,
        ),
        TOKENS,
        WITHIN,
        # A row that sees nobody is what the backend makes of it, so each sees itself.
        "constant causal mask",
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        attended(lambda: multi_head(sliding_window=3)),
        TOKENS,
        WITHIN,
        "sliding window",
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        attended(lambda: multi_head(dropout=0.3)),
        TOKENS,
        WITHIN,
        "dropout",
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        attended(lambda: multi_head(use_gate=True)),
        TOKENS,
        WITHIN,
        "gate",
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        attended(lambda: multi_head(size=16, value_dim=40, output_shape=48)),
        TOKENS,
        WITHIN,
        "value_dim and output_shape",
        not_on=("jax",),
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        lambda u, other: dense()(multi_head()(key=other, query=u, value=dense(64)(other))),
        [TOKENS, (7, 128)],
        WITHIN,
        "cross attention, into queries",
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        lambda u, other: dense()(multi_head()(key=other, query=other, value=u)),
        [TOKENS, (10, 128)],
        WITHIN,
        "cross attention, into values",
    ),
    Case(
        L.MultiHeadAttention,
        tokens,
        lambda u, other: dense()(multi_head()(other, other, key=u)),
        [TOKENS, (10, 128)],
        WITHIN,
        "cross attention, into keys",
    ),
    Case(
        L.MultiHeadAttention,
        lambda x: dense(64)(x),
        attended(lambda: multi_head(attention_axes=(2,))),
        (3, 8, 128),
        WITHIN,
        "one of two axes",
    ),
    Case(
        L.MultiHeadAttention,
        lambda x: dense(64)(x),
        attended(multi_head),
        (4, 5, 128),
        WITHIN,
        "two axes",
    ),
    Case(L.GroupQueryAttention, tokens, attended(grouped), TOKENS, WITHIN),
    Case(
        L.GroupQueryAttention,
        tokens,
        attended(grouped, use_causal_mask=True),
        LONG,
        WITHIN,
        "causal",
    ),
    Case(L.Attention, tokens, plain(L.Attention), TOKENS, NARROW),
    Case(L.Attention, tokens, plain(lambda: L.Attention(dropout=0.2)), TOKENS, NARROW, "dropout"),
    Case(L.Attention, tokens, plain(L.Attention, use_causal_mask=True), TOKENS, NARROW, "causal"),
    Case(
        L.Attention,
        tokens,
        plain(lambda: L.Attention(score_mode="concat", use_scale=True)),
        TOKENS,
        NARROW,
        "concat",
    ),
    Case(
        L.Attention,
        tokens,
        lambda u: dense()(L.Attention()([part(96)(u), u])),
        TOKENS,
        NARROW,
        "values as keys",
    ),
    Case(
        L.Attention,
        tokens,
        lambda u: dense()(L.Attention()([u, u])),
        TOKENS,
        EXACT,
        "of tokens to themselves",
    ),
    Case(L.AdditiveAttention, tokens, plain(L.AdditiveAttention), TOKENS, NARROW),
    Case(
        L.AdditiveAttention,
        tokens,
        plain(lambda: L.AdditiveAttention(use_scale=False)),
        TOKENS,
        NARROW,
        "without scale",
    ),
)
