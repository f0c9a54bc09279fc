"""Attention layers, and attention written by hand."""

import keras

from tests.rule_cases.case import Allowance, Case, dense

L = keras.layers

SMALL = Allowance(0.06, 0.12, "logits count as Gaussian, and heads as wide")
LARGE = Allowance(0.10, 0.25, "large logits make few tokens win")


def kernel(x, scheme):
    return dense(64, kernel_initializer=scheme)(x)


def attended(kind, layer, scheme="glorot_normal", note="", allowance=SMALL):
    def back(u):
        normal = L.LayerNormalization()(u)
        return kernel(u + layer(normal), scheme)

    return Case(kind, lambda x: kernel(x, scheme), back, (10, 32), allowance, note, examples=8)


def own(scheme):
    return lambda x: L.MultiHeadAttention(4, 16, kernel_initializer=scheme)(x, x)


def grouped(scheme):
    return lambda x: L.GroupQueryAttention(16, 4, 2, kernel_initializer=scheme)(x, x)


CASES = (
    attended(L.MultiHeadAttention, own("glorot_normal")),
    attended(L.MultiHeadAttention, own("he_normal"), "he_normal", "large logits", LARGE),
    attended(L.GroupQueryAttention, grouped("glorot_normal")),
)
