"""Fans of einsum patterns, counted by NumPy on ones; patterns that are none are named."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import keras_varinit as kv
from keras_varinit.maths import fans

pytestmark = pytest.mark.once

L = keras.layers


@st.composite
def patterns(draw):
    """A pattern that NumPy reads, the shapes of input and kernel, and whether the kernel is first.

    With letters twice in an operand, ellipses anywhere, sizes that are broadcast, spaces, and
    outputs that are not written.
    """
    sizes = {letter: draw(st.integers(1, 3), label=letter) for letter in "abcAB"}
    hidden = draw(st.lists(st.integers(1, 3), max_size=2))
    operands, shapes = [], []
    for most in (4, 3):
        letters = draw(st.lists(st.sampled_from("abcAB"), max_size=most))
        broadcast = {letter for letter in letters if draw(st.integers(0, 4)) == 0}
        shape = [1 if letter in broadcast else sizes[letter] for letter in letters]
        if draw(st.booleans()):
            place = draw(st.integers(0, len(letters)))
            taken = hidden[draw(st.integers(0, len(hidden))) :]
            taken = [1 if draw(st.integers(0, 4)) == 0 else size for size in taken]
            letters.insert(place, "...")
            shape[place:place] = taken
        operands.append("".join(letters))
        shapes.append(tuple(shape))
    known = sorted({*"".join(operands)} - {"."})
    output = draw(st.lists(st.sampled_from(known), unique=True)) if known else []
    output.insert(draw(st.integers(0, len(output))), "...")
    kernel_first = draw(st.booleans())
    pattern = ",".join(reversed(operands) if kernel_first else operands)
    if draw(st.integers(0, 3)):
        pattern += "->" + "".join(output)
    space = draw(st.integers(0, len(pattern)))
    if (
        ".." not in pattern[max(space - 2, 0) : space + 2]
        and pattern[space - 1 : space + 1] != "->"
    ):
        pattern = pattern[:space] + " " + pattern[space:]
    return pattern, *shapes, kernel_first


def contracted(pattern, data, kernel, kernel_first):
    return np.einsum(pattern, *((kernel, data) if kernel_first else (data, kernel)))


def check_counts(found, pattern, shape, kernel, kernel_first):
    """Ones in input and kernel count the connections of every output."""
    data = np.ones(shape)
    counted = contracted(pattern, data, np.ones(kernel), kernel_first)
    assert np.all(counted == found.fan_in)
    assert found.fan_out == pytest.approx(counted.sum() / data.size, rel=1e-12)
    assert found.connections / found.output_size == pytest.approx(found.fan_in, rel=1e-12)
    assert found.connections / found.input_size == pytest.approx(found.fan_out, rel=1e-12)
    for axis, size in enumerate(kernel):
        # An axis tells filters apart if no output sees two of its places.
        seen = np.zeros(counted.shape, int)
        for place in range(size):
            one = np.zeros(kernel)
            np.moveaxis(one, axis, 0)[place] = 1
            seen += contracted(pattern, data, one, kernel_first) > 0
        if size > 1:
            assert (axis in found.filter_axes) == bool(np.all(seen <= 1))


@given(patterns())
def test_counts_are_those_of_numpy(drawn):
    pattern, shape, kernel, kernel_first = drawn
    found = fans.einsum(pattern, kernel, shape, kernel_first=kernel_first)
    (data, own), output = fans.subscripts(pattern, (shape, kernel), kernel_first)
    sizes = {}
    for letter, size in zip([*data, *own], [*shape, *kernel], strict=True):
        sizes[letter] = max(size, sizes.get(letter, 1))
    zeros = np.zeros(shape), np.zeros(kernel)
    assert contracted(pattern, *zeros, kernel_first).shape == tuple(sizes[k] for k in output)
    check_counts(found, *drawn)


@given(
    st.text("aabbBc.,->1 ", max_size=12).map(lambda text: text.replace(".", "...")),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_any_text_is_read_as_numpy_reads_it_or_refused_by_name(text, kernel_rank, rank):
    """Nothing but a ValueError, and only where NumPy refuses the pattern too."""
    shape, kernel = (2,) * rank, (2,) * kernel_rank
    try:
        counted = np.einsum(text, np.ones(shape), np.ones(kernel))
    except ValueError:
        with pytest.raises(ValueError, match="the einsum pattern '") as raised:
            fans.einsum(text, kernel, shape)
        assert repr(text) in str(raised.value)
    else:
        found = fans.einsum(text, kernel, shape)
        assert np.all(counted == found.fan_in)
        assert found.fan_out == pytest.approx(counted.sum() / 2**rank)


@pytest.mark.parametrize(
    ("pattern", "kernel", "shape", "reason"),
    [
        ("ab->b", (3,), (2, 3), "it has 1 operands, not an input and a kernel"),
        ("ab,bc,cd->ad", (3, 4), (2, 3), "it has 3 operands"),
        ("ab,b1->a1", (3, 4), (2, 3), "'b1' is not letters and at most one ellipsis"),
        ("a..b,bc->ac", (3, 4), (2, 3), "'a..b' is not letters"),
        ("...a...,ab->b", (3, 4), (2, 3), "'...a...' is not letters"),
        ("ab,bc->acc", (3, 4), (2, 3), "the output 'acc' repeats a letter"),
        ("ab,bc->ad", (3, 4), (2, 3), "has one that no operand has"),
        ("ab,bcd->ac", (3, 4), (2, 3), "'bcd' does not match a shape (3, 4)"),
        ("ab,b->a", (3, 4), (2, 3), "'b' does not match a shape (3, 4)"),
        ("...b,bc->c", (3, 4), (2, 3), "the output 'c' lacks the ellipsis"),
        ("ab,bc->ac", (3, 4), (2, 5), "'b' has sizes 5 and 3"),
        ("ab,bb->ab", (3, 4), (2, 3), "'b' has sizes 3 and 4"),
    ],
)
def test_a_pattern_that_cannot_be_read_says_why(pattern, kernel, shape, reason):
    with pytest.raises(ValueError, match="the einsum pattern") as raised:
        fans.einsum(pattern, kernel, shape)
    assert repr(pattern) in str(raised.value)
    assert reason in str(raised.value)


def test_an_unknown_length_leaves_what_it_does_not_touch():
    position = fans.einsum("abc,cd->abd", (5, 7), (None, None, 5))
    assert (position.fan_in, position.fan_out, position.connections) == (5, 7, 35)
    assert fans.einsum("abc,cd->ad", (5, 7), (None, None, 5)).connections is None
    assert fans.einsum("abb,bd->ad", (5, 7), (None, None, 5)).connections == 35


class Product(L.Layer):
    """An einsum with a weight of its own."""

    def __init__(self, pattern, shape, kernel_first=False, **options):
        super().__init__(**options)
        self.pattern, self.shape, self.kernel_first = pattern, shape, kernel_first

    def build(self, shape):
        self.w = self.add_weight(shape=self.shape, name="w", initializer="he_normal")

    def call(self, x):
        operands = (self.w, x) if self.kernel_first else (x, self.w)
        return ops.einsum(self.pattern, *operands)


@pytest.mark.parametrize(
    ("pattern", "kernel_first"),
    [("abc,cd", False), ("cd,...c->...d", True), ("dC,abC->abd", True), ("...c,cd", False)],
)
def test_patterns_of_users_layers_are_read(pattern, kernel_first):
    shape = (8, 6) if "dC" not in pattern else (6, 8)
    layer = Product(pattern, shape, kernel_first, name="product")
    model = keras.Sequential([keras.Input((4, 8)), layer, L.Dense(2)])
    layer.w.assign(np.full(shape, 0.5))  # of He's variance 2/8 exactly
    analysis = kv.analyze(model)
    context = analysis.contexts[layer.w.path]
    assert (context.fan_in, context.fan_out) == (8, 6)
    assert analysis.unknown == ()
    assert analysis.predicted[layer.w.path].forward == pytest.approx(2.0)


@pytest.mark.parametrize("pattern", ["abb,bc->ac", "abc,ccd->abd", "abc,cde->abd"])
def test_patterns_that_the_engine_does_not_follow_have_no_number(pattern):
    """Fans are counted; a diagonal, or a sum over the kernel alone, has no second moment."""
    shapes = {"abb,bc->ac": (8, 6), "abc,ccd->abd": (8, 8, 6)}
    layer = Product(pattern, shapes.get(pattern, (8, 6, 5)))
    model = keras.Sequential([keras.Input((8, 8)), layer])
    analysis = kv.analyze(model)
    assert analysis.contexts[layer.w.path].fan_in > 0
    assert analysis.predicted[layer.w.path].forward is None
    assert any("einsum" in note for note in analysis.notes)


def test_a_pattern_that_the_layer_cannot_mean_is_noted_with_the_layer(monkeypatch):
    """What only one backend reads is no error of the analysis."""
    model = keras.Sequential([keras.Input((4, 8)), Product("abc,cd->abd", (8, 6), name="product")])
    original = fans.einsum
    monkeypatch.setattr(
        fans, "einsum", lambda pattern, *rest, **options: original("ab,b1->a", *rest, **options)
    )
    (note, *_) = kv.analyze(model).notes
    assert note.startswith("einsum: the einsum pattern 'ab,b1->a' cannot be read: 'b1' is not")


def test_an_axis_of_one_is_known_although_the_input_is_not():
    """The query of an attention over a single feature."""
    found = fans.einsum("abc,cde->abde", (1, 4, 16))
    assert (found.fan_in, found.fan_out) == (1, 64)
    assert (found.connections, found.input_size, found.output_size) == (64, 1, 64)
